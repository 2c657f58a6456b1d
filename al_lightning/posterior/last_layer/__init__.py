"""Posteriors over the weights of the last linear layer, on features that stay as they are."""
