"""Tumor-to-stroma ratio: definition, confidence interval, and agreement with masks."""
