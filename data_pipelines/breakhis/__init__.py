"""BreakHis (Spanhol et al. 2016): file names, scanning, checks and the TFDS builder."""
