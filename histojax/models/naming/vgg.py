"""Names of VGG16 weights, with and without batch norm: torchvision, and timm, whose hidden layers are convolutions.

Both count pooling and ReLU as layers, so no formula gives the number of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histojax.models.naming.rules import Naming, Rule, batch_norm, dense
from histojax.models.naming.transforms import CONV, CONV_AS_DENSE, Transform

_DEPTHS = (2, 2, 3, 3, 3)
_GRID = 7


def _flatten_kernel(kernels: Sequence[np.ndarray]) -> np.ndarray:
    return kernels[0].reshape(len(kernels[0]), -1).T


# A convolution as large as its map, (o, c, 7, 7). Our dense layer sees the map with its channels first, as torch does.
_MAP_SIZED_CONV = Transform(_flatten_kernel, lambda a: (a.T.reshape(a.shape[1], -1, _GRID, _GRID),))


def _convolution_rules(with_batch_norm: bool) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    number = 0
    for block, depth in enumerate(_DEPTHS):
        for layer in range(depth):
            path = f"blocks/{block}/layers/{layer}"
            rules.append(Rule(f"{path}/conv/kernel", f"features.{number}.weight", CONV))
            rules.append(Rule(f"{path}/conv/bias", f"features.{number}.bias"))
            if with_batch_norm:
                rules += batch_norm(f"{path}/norm", f"features.{number + 1}")
            number += 3 if with_batch_norm else 2
        number += 1  # the pooling
    return tuple(rules)


def _namings(with_batch_norm: bool) -> tuple[Naming, ...]:
    convolutions = _convolution_rules(with_batch_norm)
    hidden = (*dense("classifier/fc1", "classifier.0"), *dense("classifier/fc2", "classifier.3"))
    torchvision = Naming(
        "torchvision", (*convolutions, *hidden, *dense("head", "classifier.6")), classifier=("classifier.6.",)
    )
    timm = Naming(
        "timm",
        (
            *convolutions,
            Rule("classifier/fc1/kernel", "pre_logits.fc1.weight", _MAP_SIZED_CONV),
            Rule("classifier/fc1/bias", "pre_logits.fc1.bias"),
            Rule("classifier/fc2/kernel", "pre_logits.fc2.weight", CONV_AS_DENSE),
            Rule("classifier/fc2/bias", "pre_logits.fc2.bias"),
            *dense("head", "head.fc"),
        ),
        classifier=("head.fc.",),
    )
    return torchvision, timm


VGG16 = _namings(with_batch_norm=False)
VGG16_BN = _namings(with_batch_norm=True)
# For a model that has VGG16's convolutions and no other part of it.
VGG16_CONVOLUTIONS = (
    Naming(
        "torchvision/timm",
        _convolution_rules(with_batch_norm=False),
        classifier=("classifier.6.", "head.fc."),
        ignored=(r"^classifier\.[03]\.", r"^pre_logits\."),
    ),
)
