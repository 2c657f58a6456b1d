"""Records of a run on disk, written and read back."""

from al_lightning.records.journal import read_journal
from al_lightning.records.replay import Recorded, recorded, trained_on
from al_lightning.records.round import PICK_COLUMNS, Change, Correction, Pick, Round
from al_lightning.records.weights import States, digest_of, read_states

__all__ = [
    "read_journal",
    "Change",
    "Correction",
    "Pick",
    "PICK_COLUMNS",
    "Recorded",
    "Round",
    "recorded",
    "trained_on",
    "States",
    "digest_of",
    "read_states",
]
