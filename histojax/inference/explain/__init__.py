"""Saliency maps: Grad-CAM, DT Grad-CAM and their sanity checks."""
