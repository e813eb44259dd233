"""Parts that several models share: layers, norms, attention, pooling, kernels."""
