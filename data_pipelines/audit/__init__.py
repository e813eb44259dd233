"""Audit of a dataset: duplicates, leaks, label conflicts, unusual images."""
