"""Names of DenseNet weights: torchvision and timm, which agree, and torchvision's files from before 2018.

The old files have a dot in `norm.1`, which Python no longer allows in a module name.
"""

from __future__ import annotations

from histojax.models.naming.rules import Naming, Rule, batch_norm, dense
from histojax.models.naming.transforms import CONV


def _naming(title: str, dot: str) -> Naming:
    rules = [Rule("conv0/kernel", "features.conv0.weight", CONV), *batch_norm("norm0", "features.norm0")]
    for n in (1, 2):
        layer = "features.denseblock{i+1}.denselayer{j+1}"
        rules += batch_norm(f"blocks/{{i}}/{{j}}/norm{n}", f"{layer}.norm{dot}{n}")
        rules.append(Rule(f"blocks/{{i}}/{{j}}/conv{n}/kernel", f"{layer}.conv{dot}{n}.weight", CONV))
    rules += batch_norm("transitions/{i}/norm", "features.transition{i+1}.norm")
    rules.append(Rule("transitions/{i}/conv/kernel", "features.transition{i+1}.conv.weight", CONV))
    rules += [*batch_norm("norm5", "features.norm5"), *dense("head", "classifier")]
    return Naming(title, tuple(rules), classifier=("classifier.",))


DENSENET = (_naming("torchvision/timm", ""), _naming("torchvision before 2018", "."))
