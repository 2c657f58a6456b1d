"""Checks for an acquisition or a posterior of your own: which part of its contract it breaks."""

from al_lightning.testing.acquisitions import check_acquisition, on_rank_threads
from al_lightning.testing.posteriors import check_posterior

__all__ = ["check_acquisition", "check_posterior", "on_rank_threads"]
