"""VGG16, with batch norm and without: torchvision, and timm, whose hidden dense layers are convolutions.

Where pooling and ReLU count as layers of their own, as in both, no formula gives the number of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histojax.weights.names import Naming, Rule, Table
from histojax.weights.tables.resnet import dense, norm
from histojax.weights.transforms import CONV, CONV_AS_DENSE, Transform

_DEPTHS = (2, 2, 3, 3, 3)
_GRID = 7


def _ours(kernels: Sequence[np.ndarray]) -> np.ndarray:
    return kernels[0].reshape(len(kernels[0]), -1).T


# A convolution as large as its map, (o, c, 7, 7): our dense layer sees the map with its channels first, as torch does.
_WHOLE_MAP = Transform(_ours, lambda a: (a.T.reshape(a.shape[1], -1, _GRID, _GRID),))


def _convolutions(batch_norm: bool) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    number = 0
    for block, depth in enumerate(_DEPTHS):
        for layer in range(depth):
            path = f"blocks/{block}/layers/{layer}"
            rules.append(Rule(f"{path}/conv/kernel", f"features.{number}.weight", CONV))
            rules.append(Rule(f"{path}/conv/bias", f"features.{number}.bias"))
            if batch_norm:
                rules += norm(f"{path}/norm", f"features.{number + 1}")
            number += 3 if batch_norm else 2
        number += 1  # the pooling
    return tuple(rules)


def _table(model: str, batch_norm: bool) -> Table:
    convolutions = _convolutions(batch_norm)
    hidden = (*dense("classifier/fc1", "classifier.0"), *dense("classifier/fc2", "classifier.3"))
    torchvision = Naming(
        "torchvision", (*convolutions, *hidden, *dense("head", "classifier.6")), classifier=("classifier.6.",)
    )
    timm = Naming(
        "timm",
        (
            *convolutions,
            Rule("classifier/fc1/kernel", "pre_logits.fc1.weight", _WHOLE_MAP),
            Rule("classifier/fc1/bias", "pre_logits.fc1.bias"),
            Rule("classifier/fc2/kernel", "pre_logits.fc2.weight", CONV_AS_DENSE),
            Rule("classifier/fc2/bias", "pre_logits.fc2.bias"),
            *dense("head", "head.fc"),
        ),
        classifier=("head.fc.",),
    )
    return Table(model, (torchvision, timm))


def _backbone(model: str) -> Table:
    """A model that has VGG16's convolutions and no other part of it."""
    convolutions = Naming(
        "torchvision/timm",
        _convolutions(batch_norm=False),
        classifier=("classifier.6.", "head.fc."),
        ignored=(r"^classifier\.[03]\.", r"^pre_logits\."),
    )
    return Table(model, (convolutions,), new=("inceptions/", "head/"))


TABLES = (_table("vgg16", batch_norm=False), _table("vgg16_bn", batch_norm=True), _backbone("vgg16_inception"))
