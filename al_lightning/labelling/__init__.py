"""People who label: what they are asked, what they answer, and who gives the labels of a batch."""

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.asked import AskedBatch, AskedPoint
from al_lightning.labelling.label_studio import LabelStudio
from al_lightning.labelling.oracle import Answers, AskPeople, DatasetLabels, Oracle, Query
from al_lightning.labelling.resolve import Resolved

__all__ = [
    "Oracle",
    "DatasetLabels",
    "AskPeople",
    "LabelStudio",
    "Query",
    "Answers",
    "Answer",
    "Resolved",
    "AskedBatch",
    "AskedPoint",
]
