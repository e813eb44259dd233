"""BreakHis (Spanhol et al. 2016): file names, scan, published results and TFDS builder."""
