import pytest
import torch

from al_lightning.records.weights import digest_of, read_states
from al_lightning.rounds.resuming import save_states

STATES = [{"w": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(4), "b": torch.zeros(0)}]


def test_a_hash_tells_values_shapes_types_names_and_members_apart():
    others = [
        [{"w": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(5), "b": torch.zeros(0)}],
        [{"w": torch.arange(12.0).reshape(4, 3), "n": torch.tensor(4), "b": torch.zeros(0)}],
        [{"w": torch.arange(12.0).reshape(3, 4).double(), "n": torch.tensor(4), "b": torch.zeros(0)}],
        [{"v": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(4), "b": torch.zeros(0)}],
        [*STATES, {}, *STATES],
    ]
    assert len({digest_of(states) for states in [STATES, *others]}) == 6
    transposed = torch.arange(12.0).reshape(3, 4).T.contiguous().T  # the same values, other strides
    assert digest_of([{**STATES[0], "w": transposed}]) == digest_of(STATES)


def test_any_flipped_bit_gives_an_error_with_the_path_or_the_same_weights(tmp_path):
    path = tmp_path / "first_weights.pt"
    save_states(path, STATES)
    whole, refused = path.read_bytes(), []
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            (found,) = read_states(path, digest=digest_of(STATES), way_out="start anew")
        except ValueError as error:
            refused.append(str(error))
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in STATES[0].items())
    assert len(refused) > 20
    assert all(str(path) in words and "Restore the file, or start anew" in words for words in refused)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1], [{"w": 1}], [{1: torch.zeros(1)}], torch.zeros(2), []])
def test_files_of_another_structure_are_refused_with_the_path(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"w\.pt holds (no weights of a run|other weights).* Restore the file, or go home"
    ):
        read_states(tmp_path / "w.pt", digest=digest_of(STATES), way_out="go home")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello"])
def test_what_is_no_file_of_tensors_is_refused_by_path_and_kind_of_error(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pt cannot be read \(.+\)\. Restore the file, or go home"):
        read_states(tmp_path / "w.pt", digest="", way_out="go home")
    with pytest.raises(ValueError, match=r"missing\.pt cannot be read \(there is no such file\)"):
        read_states(tmp_path / "missing.pt", digest="", way_out="go home")
