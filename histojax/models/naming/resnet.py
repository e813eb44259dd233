"""Names of ResNet and SE-ResNet weights in torchvision and timm, which agree."""

from __future__ import annotations

from histojax.models.naming.rules import Naming, Rule, batch_norm, dense
from histojax.models.naming.transforms import CONV, CONV_AS_DENSE


def _resnet_rules() -> tuple[Rule, ...]:
    rules = [Rule("conv1/kernel", "conv1.weight", CONV), *batch_norm("bn1", "bn1")]
    # The stages are attributes, so `layer{i}` counts from 1 on both sides.
    for n in (1, 2, 3):
        rules.append(Rule(f"layer{{i}}/{{j}}/conv{n}/kernel", f"layer{{i}}.{{j}}.conv{n}.weight", CONV))
        rules += batch_norm(f"layer{{i}}/{{j}}/bn{n}", f"layer{{i}}.{{j}}.bn{n}")
    rules.append(Rule("layer{i}/{j}/downsample/0/kernel", "layer{i}.{j}.downsample.0.weight", CONV))
    rules += batch_norm("layer{i}/{j}/downsample/1", "layer{i}.{j}.downsample.1")
    return (*rules, *dense("head", "fc"))


def _gate_rules() -> tuple[Rule, ...]:
    rules = []
    for n in (1, 2):
        gate, theirs = f"layer{{i}}/{{j}}/attention/fc{n}", f"layer{{i}}.{{j}}.se.fc{n}"
        rules += [Rule(f"{gate}/kernel", f"{theirs}.weight", CONV_AS_DENSE), Rule(f"{gate}/bias", f"{theirs}.bias")]
    return tuple(rules)


RESNET = (Naming("torchvision/timm", _resnet_rules(), classifier=("fc.",)),)
SERESNET = (Naming("timm", (*_resnet_rules(), *_gate_rules()), classifier=("fc.",)),)
