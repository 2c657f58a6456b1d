"""Is one acquisition better than another? Runs paired by seed, and whether chance could have made the difference."""

from al_lightning.report.compare.differences import Comparison, Row, compare
from al_lightning.report.compare.pairing import Pair, Run
from al_lightning.report.compare.significance import PairedDifference, holm, paired_difference, sign_test
from al_lightning.report.compare.text import as_csv, as_text

__all__ = [
    "compare",
    "Comparison",
    "Row",
    "Run",
    "Pair",
    "paired_difference",
    "PairedDifference",
    "sign_test",
    "holm",
    "as_text",
    "as_csv",
]
