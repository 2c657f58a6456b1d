"""Data files are named in setup.cfg; `.ci/run wheel` builds the wheel and the sdist and runs what they hold."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg")
DATA = {package: patterns.split(", ") for package, patterns in SETTINGS["options.package_data"].items()}
FOLDERS = {package: ROOT.joinpath(*package.split(".")) for package in DATA} | {
    "al_lightning.configs": ROOT / "configs"  # as setup.py maps it
}


def test_every_data_file_of_the_package_and_every_configuration_is_in_the_wheel():
    files = [path for path in (ROOT / "al_lightning").rglob("*") if path.is_file()]
    files = {path for path in files if path.suffix not in {".py", ".pyc"}} | set((ROOT / "configs").iterdir())
    named = {path for package, folder in FOLDERS.items() for pattern in DATA[package] for path in folder.glob(pattern)}
    assert named == files


def test_every_name_in_the_settings_is_that_of_a_file():
    missing = [(package, name) for package in DATA for name in DATA[package] if not list(FOLDERS[package].glob(name))]
    assert missing == []
