"""Packages of the distribution; everything else is in pyproject.toml and setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["al_lightning*"]), "al_lightning.configs"],
    package_dir={"al_lightning.configs": "configs"},  # one copy: in the package where it is installed, here in a clone
)
