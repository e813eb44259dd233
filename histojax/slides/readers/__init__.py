"""Slide files: OpenSlide, TIFF and plain images behind one interface."""
