"""Whole slides: reading at a given µm/px, tissue, tiles, maps, and a tumor-to-stroma ratio with an interval.

This room does not import jax: the model is passed in as a function of pixels.
"""
