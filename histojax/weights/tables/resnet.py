"""ResNet and SE-ResNet: torchvision, and timm, which calls everything the same."""

from __future__ import annotations

from histojax.weights.names import Naming, Rule, Table
from histojax.weights.transforms import CONV, CONV_AS_DENSE, DENSE


def norm(path: str, name: str) -> tuple[Rule, ...]:
    """The four arrays of a batch norm."""
    return (
        Rule(f"{path}/scale", f"{name}.weight"),
        Rule(f"{path}/bias", f"{name}.bias"),
        Rule(f"{path}/mean", f"{name}.running_mean"),
        Rule(f"{path}/var", f"{name}.running_var"),
    )


def dense(path: str, name: str) -> tuple[Rule, ...]:
    """Kernel and bias of a dense layer."""
    return Rule(f"{path}/kernel", f"{name}.weight", DENSE), Rule(f"{path}/bias", f"{name}.bias")


def _rules() -> tuple[Rule, ...]:
    rules = [Rule("conv1/kernel", "conv1.weight", CONV), *norm("bn1", "bn1")]
    # The stages are attributes, so `layer{i}` counts from 1 on both sides.
    for n in (1, 2, 3):
        rules.append(Rule(f"layer{{i}}/{{j}}/conv{n}/kernel", f"layer{{i}}.{{j}}.conv{n}.weight", CONV))
        rules += norm(f"layer{{i}}/{{j}}/bn{n}", f"layer{{i}}.{{j}}.bn{n}")
    rules.append(Rule("layer{i}/{j}/downsample/0/kernel", "layer{i}.{j}.downsample.0.weight", CONV))
    rules += norm("layer{i}/{j}/downsample/1", "layer{i}.{j}.downsample.1")
    return (*rules, *dense("head", "fc"))


def _gates() -> tuple[Rule, ...]:
    rules = []
    for n in (1, 2):
        gate, theirs = f"layer{{i}}/{{j}}/attention/fc{n}", f"layer{{i}}.{{j}}.se.fc{n}"
        rules += [Rule(f"{gate}/kernel", f"{theirs}.weight", CONV_AS_DENSE), Rule(f"{gate}/bias", f"{theirs}.bias")]
    return tuple(rules)


TORCHVISION = Naming("torchvision/timm", _rules(), classifier=("fc.",))

TABLES = (
    Table("resnet50", (TORCHVISION,)),
    Table("seresnet50", (Naming("timm", (*_rules(), *_gates()), classifier=("fc.",)),)),
    Table("dala_resnet50", (TORCHVISION,), new=("attention/", r"layer4/\d+/attention/", r"head/dense\d/")),
)
