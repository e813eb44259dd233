"""Conversions between the array layout of another implementation and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A pair of inverse conversions that only move elements, so shapes can be checked without reading values.

    Attributes:
      ours: maps the arrays named by a rule to one of our arrays.
      theirs: maps our array back to the arrays named by the rule.
    """

    ours: Callable[[Sequence[np.ndarray]], np.ndarray]
    theirs: Callable[[np.ndarray], Sequence[np.ndarray]]


SAME = Transform(lambda a: a[0], lambda a: (a,))
# (o, i) <-> (i, o).
DENSE = Transform(lambda a: a[0].T, lambda a: (a.T,))
# (o, i / groups, kh, kw) <-> (kh, kw, i / groups, o), including depthwise convolutions.
CONV = Transform(lambda a: a[0].transpose(2, 3, 1, 0), lambda a: (a.transpose(3, 2, 0, 1),))
# A 1×1 convolution that is a dense layer in our model: (o, i, 1, 1) <-> (i, o).
CONV_AS_DENSE = Transform(lambda a: a[0][:, :, 0, 0].T, lambda a: (a.T[:, :, None, None],))
# Separate query, key and value <-> concatenated in this order, which is the order of `qkv` in timm and torchvision.
SPLIT_DENSE = Transform(lambda a: np.concatenate(a).T, lambda a: np.split(a.T, 3))
SPLIT_BIAS = Transform(np.concatenate, lambda a: np.split(a, 3))
