"""Posteriors of last layers that are each trained by themselves, on features that stay as they are."""
