"""`python -m al_lightning` is `al-lightning`.

Python itself looks for modules in the current folder first then, so that a `sklearn.py` there hides the package, before
any line of ours is run; `python -P -m al_lightning` (from 3.11 on) and `al-lightning` look there last.
"""

from al_lightning.cli import main

if __name__ == "__main__":
    main()
