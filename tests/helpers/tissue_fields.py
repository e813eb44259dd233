"""Simulated tissue: smooth random fields, and tile tables of them."""

import numpy as np
import pandas as pd
import scipy.ndimage
import scipy.stats

STROMA_CUT = 0.3  # a standard normal field is stroma above this value
TRUE_PERCENTAGE = 100 * scipy.stats.norm.sf(STROMA_CUT)  # 38.2 %


def field(rng, rows, columns, sigma):
    """A standard normal field (rows, columns), smoothed by `sigma` tiles, with lobes about 4·sigma tiles wide."""
    pad = 5 * sigma
    noise = rng.standard_normal((rows + 2 * pad, columns + 2 * pad))
    return scipy.ndimage.gaussian_filter(noise, sigma)[pad:-pad, pad:-pad] * 2 * np.sqrt(np.pi) * sigma


def table_of(tumor, stroma):
    """A tile table whose probabilities are arrays (rows, columns)."""
    row, column = np.divmod(np.arange(tumor.size), tumor.shape[1])
    flat = {"prob_tumor": tumor.ravel().astype(float), "prob_stroma": stroma.ravel().astype(float)}
    return pd.DataFrame({"row": row, "column": column, **flat})
