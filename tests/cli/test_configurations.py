from pathlib import Path

import pytest

from al_lightning.cli.configurations import FOLDER, located, path_of

CLONE = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_in_a_clone_the_configurations_lie_beside_the_package():
    assert FOLDER == CLONE
    assert Path(path_of("repeated_digits.yaml")) == CLONE / "repeated_digits.yaml"


def test_a_file_of_the_current_folder_comes_first_with_or_without_a_folder():
    Path("configs").mkdir()
    for name in ("mnist.yaml", "configs/mnist.yaml", "own.yml"):
        Path(name).write_text("")
        assert path_of(name) == name


@pytest.mark.parametrize("value", ["model: Classifier", "{}", "s3://bucket/mnist.yaml", "repeated_digits", "x" * 5000])
def test_what_names_no_file_of_this_kind_is_left_to_the_parser(value):
    assert path_of(value) == value


def test_a_folder_that_is_not_there_is_no_name_of_the_package_but_the_error_says_that_name():
    with pytest.raises(
        ValueError, match=r"^There is no file configs/mnist\.yaml\. A configuration of this name .*: mni"
    ):
        path_of("configs/mnist.yaml")


@pytest.mark.parametrize("name", ["mnits.yaml", "configs/mnits.yaml"])
def test_an_unknown_one_is_refused_with_all_names(name):
    with pytest.raises(ValueError, match=f"^There is no file {name}, and no such configuration comes with") as refused:
        path_of(name)
    assert all(path.name in str(refused.value) for path in CLONE.glob("*.yaml"))


def test_each_way_to_name_a_configuration_is_found_and_all_else_stays():
    own = str(CLONE / "mnist.yaml")
    given = ["fit", "-c", "mnist.yaml", "--config=mnist.yaml", "--config", "mnist.yaml", "--data.train=mnist.yaml"]
    assert located(given) == ["fit", "-c", own, f"--config={own}", "--config", own, "--data.train=mnist.yaml"]
