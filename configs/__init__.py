"""Experiments: one ml_collections config per file."""
