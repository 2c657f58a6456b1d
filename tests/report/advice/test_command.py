from pathlib import Path

import pytest

from al_lightning.report.advice.command import main
from al_lightning.report.advice.evidence import Evidence

KNOWN = Evidence("copies, inputs", "10 %", "5 to 20 %", "100 points", "Some are.")


@pytest.fixture
def asked():
    """Return a reader of data that keeps what it was asked for."""

    def of_points(config, run):
        of_points.calls.append((config, None if run is None else run.name))
        return [KNOWN]

    of_points.calls = []
    return of_points


def test_a_run_without_its_configuration_says_what_only_the_data_tell(make_folder, asked, capsys):
    assert main([str(make_folder("one"))], of_points=asked) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "copies: not known, only the data tell, and the folder holds no configuration of them" in page
    assert asked.calls == []


def test_the_configuration_beside_the_records_is_read_unless_another_is_named(make_folder, asked, tmp_path, capsys):
    run = make_folder("one")
    (run / "config.yaml").touch()
    assert main([str(run)], of_points=asked) == 0
    assert main([str(run), "--config", str(tmp_path / "other.yaml")], of_points=asked) == 0
    assert asked.calls == [(run / "config.yaml", str(run)), (tmp_path / "other.yaml", str(run))]
    assert "  copies, inputs: 10 % (5 to 20 %), 100 points\n" in capsys.readouterr().out


def test_a_configuration_alone_is_of_a_run_to_come(asked, tmp_path, capsys):
    config = tmp_path / "a.yaml"
    config.touch()
    assert main([str(config)], of_points=asked) == 0
    assert asked.calls == [(config, None)]
    assert capsys.readouterr().out.startswith(f"{config}: before a run\n")
    with pytest.raises(SystemExit, match="2"):
        main([str(config), "--config", str(config)], of_points=asked)


def test_what_is_no_run_is_one_sentence_and_exit_code_two(asked, tmp_path, capsys):
    assert main([str(tmp_path / "missing")], of_points=asked) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"al-lightning advise: {tmp_path / 'missing'} is no run folder: it has no rounds.jsonl.\n"


def test_damaged_records_are_refused_before_the_data_are_read(make_folder, asked, capsys):
    run = make_folder("one")
    path = Path(run) / "rounds.jsonl"
    path.write_text(path.read_text().replace("0.75", "0.76"))
    (run / "config.yaml").touch()
    assert main([str(run)], of_points=asked) == 2
    assert "damaged" in capsys.readouterr().err
    assert asked.calls == []
