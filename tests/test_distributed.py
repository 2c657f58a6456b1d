import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from al_lightning.distributed import ALONE, Alone, Ranks, together
from al_lightning.testing import on_rank_threads


def ranks_of(num_ranks):
    trainer = Trainer(
        accelerator="cpu", devices=num_ranks, strategy="ddp", logger=False, enable_progress_bar=False, barebones=False
    )
    trainer.strategy.setup_environment()
    torch.distributed.barrier()  # a rank that left at once would close the connections that the others still make
    return Ranks(trainer)


def exchanged(num_ranks):
    ranks = ranks_of(num_ranks)
    own = torch.tensor([ranks.rank, 0.1 + ranks.rank], dtype=torch.float64)
    return ranks.gather(own), ranks.first({"rank": ranks.rank}), ranks.rank, ranks.size


def parts(num_ranks, num_points, batch_size):
    return ranks_of(num_ranks).part(num_points, batch_size)


def one_fails(num_ranks, failing):
    ranks = ranks_of(num_ranks)

    def work():
        if ranks.rank == failing:
            raise KeyError("the file of this rank is gone")
        return ranks.rank

    return ranks.together(work)


def disagree(num_ranks, differing):
    ranks = ranks_of(num_ranks)
    ranks.same("the labels", [1, 2, 3])
    ranks.same("the labels", [1, 2, 3 if ranks.rank not in differing else 4])


def buffers(num_ranks):
    ranks = ranks_of(num_ranks)
    module = nn.BatchNorm1d(2)
    module.running_mean.fill_(ranks.rank + 1)
    ranks.send_buffers(module)
    return module.running_mean.tolist(), module.num_batches_tracked.item()


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_what_is_gathered_is_in_the_order_of_the_ranks_and_the_same_on_each(on_ranks, num_ranks):
    answers = on_ranks(num_ranks, __file__, "exchanged", num_ranks=num_ranks)
    for rank, (ok, (gathered, first, own, size)) in enumerate(answers):
        assert ok
        assert gathered.dtype == torch.float64
        assert gathered.tolist() == [[other, 0.1 + other] for other in range(num_ranks)]
        assert (first, own, size) == ({"rank": 0}, rank, num_ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("num_points", "batch_size"), [(7, 2), (1, 4), (2, 1), (100, 32), (0, 4)])
def test_parts_are_contiguous_without_repetition_and_cut_at_whole_batches(on_ranks, num_points, batch_size):
    found = [
        part for _, part in on_ranks(3, __file__, "parts", num_ranks=3, num_points=num_points, batch_size=batch_size)
    ]
    assert [position for part in found for position in part] == list(range(num_points))
    assert all(part.start % batch_size == 0 for part in found if len(part) > 0)


def test_what_fails_on_one_rank_ends_all_with_its_words_long_before_a_time_out(on_ranks):
    answers = on_ranks(3, __file__, "one_fails", num_ranks=3, failing=1)
    assert answers[1] == (False, "KeyError: 'the file of this rank is gone'")
    for ok, words in (answers[0], answers[2]):
        assert not ok
        assert words == "RuntimeError: Rank 1 failed, so all stop. KeyError: 'the file of this rank is gone'"


def test_work_that_succeeds_everywhere_returns_its_own_result(on_ranks):
    assert on_ranks(2, __file__, "one_fails", num_ranks=2, failing=None) == [(True, 0), (True, 1)]


def test_ranks_that_disagree_all_raise_and_say_which(on_ranks):
    for ok, words in on_ranks(3, __file__, "disagree", num_ranks=3, differing=[2]):
        assert not ok
        assert "disagree about the labels: rank 0 has [1, 2, 3], and ranks [2] have something else" in words


def test_buffers_are_rank_zeros_everywhere(on_ranks):
    assert on_ranks(2, __file__, "buffers", num_ranks=2) == [(True, ([1.0, 1.0], 0))] * 2


def test_one_process_is_the_trivial_case():
    ranks = Ranks(Trainer(accelerator="cpu", devices=1, logger=False))
    assert ranks.gather(torch.tensor([3])).tolist() == [[3]]
    assert ranks.first("own") == "own"
    assert ranks.part(5, 2) == range(5)
    assert ranks.together(lambda: 4) == 4
    ranks.same("anything", 1)
    with pytest.raises(ZeroDivisionError):
        ranks.together(lambda: 1 / 0)


def test_alone_is_one_rank():
    assert Alone().gather(torch.tensor([1, 2])).tolist() == [[1, 2]]
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0, exchange=ALONE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("größer", "ValueError: größer"),
        ("é" * 5000, "ValueError: " + "é" * 2042),
        ("", "ValueError: "),
        ("\udcff", "ValueError: ?"),
    ],
)
def test_ranks_that_are_threads_hear_the_words_too_in_so_far_as_they_fit(words, told):
    def fail_on_the_first(rank, exchange):
        def work():
            if rank == 0:
                raise ValueError(words)

        try:
            return together(work, exchange=exchange)
        except (ValueError, RuntimeError) as error:
            return error

    first, second = on_rank_threads(fail_on_the_first, 2)
    assert (type(first), str(first)) == (ValueError, words)
    assert (type(second), str(second)) == (RuntimeError, f"Rank 0 failed, so all stop. {told}")
