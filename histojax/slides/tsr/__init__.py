"""Tumor-to-stroma ratio: definition, interval, agreement with masks."""
