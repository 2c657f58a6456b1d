"""Acquisitions that spread a batch over the features of the pool."""
