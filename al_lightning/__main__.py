"""`python -m al_lightning` is `al-lightning`."""

from al_lightning.cli import main

if __name__ == "__main__":
    main()
