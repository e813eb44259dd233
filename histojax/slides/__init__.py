"""Whole slides: read in µm/px, tissue found, tiles cut and predicted, and a tumor-to-stroma ratio with an interval.

No jax here: what predicts is passed in as a function of pixels.
"""
