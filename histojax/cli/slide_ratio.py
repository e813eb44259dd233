"""The flags of the tumor-to-stroma ratio, which `histojax slide` and `histojax slide agreement` share."""

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histojax.cli import flags
from histojax.cli.parser import refuse_unused

if TYPE_CHECKING:
    from histojax.slides.tsr.spec import TSRSpec

_log = logging.getLogger(__name__)
# Names of labels that mean tumor, stroma and necrosis, in the order of preference.
_KNOWN_LABELS = {
    "tumor": ("tumor", "tumour", "malignant"),
    "stroma": ("stroma", "interstitial"),
    "necrosis": ("necrosis",),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the ratio; the defaults of its numbers are those of `TSRSpec`."""
    group = parser.add_argument_group("tumor-to-stroma ratio")
    for name, labels in _KNOWN_LABELS.items():
        group.add_argument(
            f"--{name}",
            metavar="LABEL",
            help=f"label of {name} (default: the first of {', '.join(labels)} that exists)",
        )
    group.add_argument(
        "--measure", help="label or probability (default: label; probability for models with one class per tile)"
    )
    group.add_argument(
        "--policy", help="tiles with both labels count by probability, half or both (default: probability)"
    )
    group.add_argument("--cutoff", help="stroma-high from: default (> 50 %%), colon (> 50 %%), hcc (>= 50 %%)")
    for name, unit, text in (
        ("block_um", "UM", "side of the bootstrap's blocks in µm"),
        ("hot_spot_um", "UM", "side of the hot-spot field in µm"),
        ("tumor_distance_um", "UM", "count stroma within this distance of tumor, in µm; 0: all stroma"),
        ("min_tumor_mm2", "MM2", "smallest tumor area in mm² that is evaluated"),
        ("min_tissue_mm2", "MM2", "smallest tissue area in mm² that is evaluated"),
    ):
        group.add_argument(f"--{name}", metavar=unit, type=float, help=text)
    group.add_argument("--resamples", metavar="N", type=int, help="bootstrap resamples")
    flags.add_seed(group, "random seed of the bootstrap", default=None)


def ratio_spec(
    args: argparse.Namespace, labels: Sequence[str], thresholds: Mapping[str, float] | None
) -> "TSRSpec | None":
    """Return how the ratio is measured.

    Args:
      args: with the flags of `add_flags`.
      labels: of the model.
      thresholds: of the labels; None: the model has one class per tile.

    Returns:
      None, after a log line, where the model has no label for tumor or stroma.

    Raises:
      RunError: a label that was named does not exist, a value is out of range, or flags of the ratio are given and
        there is none.
    """
    from histojax.slides.tsr.spec import TSRSpec

    names: dict[str, Any] = {
        name: getattr(args, name) or next((label for label in known if label in labels), "")
        for name, known in _KNOWN_LABELS.items()
    }
    options = {field.name for field in dataclasses.fields(TSRSpec)} - names.keys() - {"thresholds"}
    for name in ("tumor", "stroma"):
        if not names[name]:
            refuse_unused(
                args, False, sorted(f"--{option}" for option in options), f"with a label for {name} (--{name})"
            )
            _log.info(
                "no tumor-to-stroma ratio: none of the labels %s is known to be %s (name it with --%s)",
                ", ".join(labels), name, name,
            )  # fmt: skip
            return None
    fields: dict[str, Any] = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if thresholds is None:
        fields.setdefault("measure", "probability")
    spec = TSRSpec(thresholds=dict(thresholds or {}), **names, **fields)
    spec.check_labels(labels)
    return spec
