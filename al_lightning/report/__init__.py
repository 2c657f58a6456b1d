"""Pictures and tables of runs, from the records that they leave on disk.

The pictures are `matplotlib.figure.Figure` objects: `label_efficiency(read_runs(folders)).savefig("curves.pdf")`.
"""

from al_lightning.report.batches import class_balance, joint_information
from al_lightning.report.efficiency import label_efficiency
from al_lightning.report.holdout import holdout_accuracy
from al_lightning.report.images import acquired_images
from al_lightning.report.page import write_report
from al_lightning.report.reference import paper_curves
from al_lightning.report.runs import Run, read_runs
from al_lightning.report.toy import toy_acquisitions

__all__ = [
    "read_runs",
    "Run",
    "write_report",
    "label_efficiency",
    "joint_information",
    "class_balance",
    "holdout_accuracy",
    "acquired_images",
    "toy_acquisitions",
    "paper_curves",
]
