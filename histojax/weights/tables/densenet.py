"""DenseNet: torchvision and timm, which calls everything the same, and torchvision's files of before 2018.

The old ones have a dot in `norm.1`, where Python no longer allows one in the name of a module.
"""

from __future__ import annotations

from histojax.weights.names import Naming, Rule, Table
from histojax.weights.tables.resnet import dense, norm
from histojax.weights.transforms import CONV


def _naming(title: str, dot: str) -> Naming:
    rules = [Rule("conv0/kernel", "features.conv0.weight", CONV), *norm("norm0", "features.norm0")]
    for n in (1, 2):
        layer = "features.denseblock{i+1}.denselayer{j+1}"
        rules += norm(f"blocks/{{i}}/{{j}}/norm{n}", f"{layer}.norm{dot}{n}")
        rules.append(Rule(f"blocks/{{i}}/{{j}}/conv{n}/kernel", f"{layer}.conv{dot}{n}.weight", CONV))
    rules += norm("transitions/{i}/norm", "features.transition{i+1}.norm")
    rules.append(Rule("transitions/{i}/conv/kernel", "features.transition{i+1}.conv.weight", CONV))
    rules += [*norm("norm5", "features.norm5"), *dense("head", "classifier")]
    return Naming(title, tuple(rules), classifier=("classifier.",))


TABLES = (Table("densenet121", (_naming("torchvision/timm", ""), _naming("torchvision before 2018", "."))),)
