"""Tiles with any number of labels each: what layouts are read, how images with masks are cut, the TFDS builder."""
