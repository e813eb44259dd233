"""A tile table for tests."""

import numpy as np
import pandas as pd


def make_table(n_rows: int = 3, n_columns: int = 4, seed: int = 0) -> pd.DataFrame:
    """All tiles of a small grid of 100-pixel tiles, in order."""
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "row": row,
            "column": column,
            "tissue": rng.random(len(row)),
            "minx": column * 100,
            "miny": row * 100,
            "width": 100,
            "height": 100,
            "prob_tumor": rng.random(len(row)).astype(np.float32),
            "prob_stroma": rng.random(len(row)).astype(np.float32),
        }
    )
