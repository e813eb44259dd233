"""Slides and their results in a browser: a list of a cohort, and a page per slide with deep zoom and layers."""
