"""Convolutions after `Dropout2d` on a CPU, computed once for all K masks and scaled later."""
