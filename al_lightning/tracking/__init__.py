"""Rounds of a run in each logger of the Trainer, and pictures of the acquired points."""

from al_lightning.records.images import thumbnails_of
from al_lightning.tracking.rounds import (
    begin_tracking,
    follow_spawned,
    keep_images,
    log_earlier_rounds,
    log_last_round,
    open_loggers,
)

__all__ = [
    "begin_tracking",
    "follow_spawned",
    "keep_images",
    "log_earlier_rounds",
    "log_last_round",
    "open_loggers",
    "thumbnails_of",
]
