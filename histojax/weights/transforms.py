"""How an array of a file becomes one of ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """`ours` maps the arrays of a rule's names to one array; `theirs` is its inverse.

    Both only move elements, so that shapes can be compared without the values.
    """

    ours: Callable[[Sequence[np.ndarray]], np.ndarray]
    theirs: Callable[[np.ndarray], Sequence[np.ndarray]]


SAME = Transform(lambda a: a[0], lambda a: (a,))
# (o, i) <-> (i, o).
DENSE = Transform(lambda a: a[0].T, lambda a: (a.T,))
# (o, i / groups, kh, kw) <-> (kh, kw, i / groups, o), depthwise ones included.
CONV = Transform(lambda a: a[0].transpose(2, 3, 1, 0), lambda a: (a.transpose(3, 2, 0, 1),))
# A 1×1 convolution that is a dense layer here: (o, i, 1, 1) <-> (i, o).
CONV_AS_DENSE = Transform(lambda a: a[0][:, :, 0, 0].T, lambda a: (a.T[:, :, None, None],))
# Query, key and value apart <-> side by side in this order, the order of `qkv` in timm and torchvision.
SPLIT_DENSE = Transform(lambda a: np.concatenate(a).T, lambda a: np.split(a.T, 3))
SPLIT_BIAS = Transform(np.concatenate, lambda a: np.split(a, 3))
