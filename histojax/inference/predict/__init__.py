"""Predict many images and write the table of predictions."""
