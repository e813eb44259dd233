"""Definition of a tumor-to-stroma ratio: labels, areas, cut-off, limits, and the formulas by name."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.errors import RunError

MEASURES = ("label", "probability")
POLICIES = ("probability", "half", "both")

FORMULAS = {
    "area": "A_label = sum over tissue tiles of the label's part in the tile x (stride x mpp / 1000)^2 mm2",
    "tsr": "TSR = A_tumor / A_stroma",
    "stroma_percentage": "stroma percentage = 100 x A_stroma / (A_tumor + A_stroma)",
    "tumor_percentage": "tumor percentage = 100 x A_tumor / (A_tumor + A_stroma)",
    "necrosis_share": "necrosis share = A_necrosis / A_tissue",
    "corrected": (
        "corrected share of a label = (share + specificity - 1) / (sensitivity + specificity - 1) (Rogan and Gladen "
        "1978); each area is scaled by corrected / observed share; value and interval are the median and the "
        "percentiles of draws: each resamples the blocks and draws both rates for a slide that differs from the mean "
        "of validation patients, slides or source images as those do (beta-binomial)"
    ),
}


class TSRError(RunError):
    """A tumor-to-stroma ratio that cannot be measured as requested; the message names the option and the remedy."""


@dataclasses.dataclass(frozen=True)
class Cutoff:
    """The boundary between stroma-low and stroma-high.

    Attributes:
      rule: the cut-off as a sentence.
      at: the boundary as a stroma percentage.
      inclusive: whether `at` itself is stroma-high.
    """

    rule: str
    at: float
    inclusive: bool

    def high(self, percentage: Any) -> Any:
        """Whether a stroma percentage (or an array of them) is stroma-high."""
        return percentage >= self.at if self.inclusive else percentage > self.at


CUTOFFS = {
    "default": Cutoff("stroma-high if stroma percentage > 50 %, else stroma-low", 50.0, False),
    "colon": Cutoff(
        "colon (van Pelt et al. 2018): stroma-high if stroma percentage > 50 %, else stroma-low", 50.0, False
    ),
    "hcc": Cutoff("HCC (Lv et al. 2015): stroma-high if stroma percentage >= 50 %, else stroma-low", 50.0, True),
}


@dataclasses.dataclass(frozen=True)
class TSRSpec:
    """How a slide's tumor-to-stroma ratio is measured; raises TSRError for an invalid field.

    Attributes:
      tumor: label of tumor.
      stroma: label of stroma.
      necrosis: label of necrosis; empty for none.
      thresholds: threshold of every label; a tile carries each label whose probability is at or above its threshold.
        Empty for exclusive labels: a tile carries the most probable one.
      measure: how much of a tile counts for a label: "label" counts 1 if the tile carries it, "probability" counts its
        probability.
      policy: how a tile that carries both tumor and stroma is divided (only for measure "label"): "probability" in
        proportion to the two probabilities, "half" half each, "both" the whole tile to each.
      cutoff: name of a cut-off in CUTOFFS.
      block_um: side in µm of the square blocks that the bootstrap resamples; it should be larger than the structures.
      resamples: number of bootstrap resamples.
      seed: random seed of the bootstrap.
      min_tumor_mm2: an area with less tumor is not evaluated. This default is our choice, not from the literature.
      min_tissue_mm2: an area with less tissue is not evaluated; also our choice.
      hot_spot_um: side in µm of the square hot-spot field. The literature scores a round field at x10, about 2 mm in
        diameter depending on the eyepiece.
      tumor_distance_um: stroma counts only in tiles whose centre is at most this many µm from the centre of a tumor
        tile; 0 counts all stroma.
    """

    tumor: str = "tumor"
    stroma: str = "stroma"
    necrosis: str = ""
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measure: str = "label"
    policy: str = "probability"
    cutoff: str = "default"
    block_um: float = 1000.0
    resamples: int = 2000
    seed: int = 0
    min_tumor_mm2: float = 0.1
    min_tissue_mm2: float = 0.5
    hot_spot_um: float = 1000.0
    tumor_distance_um: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("measure", MEASURES), ("policy", POLICIES), ("cutoff", tuple(CUTOFFS))):
            if getattr(self, name) not in known:
                raise TSRError(f"{option(name)} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.measure == "probability" and self.policy != "probability":
            raise TSRError(
                f"--policy {self.policy!r} divides tiles by their labels and does not apply to --measure probability: "
                "use only one of the two options"
            )
        for name in ("block_um", "hot_spot_um"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise TSRError(f"{option(name)} {getattr(self, name)} must be a length above 0 µm")
        for name in ("min_tumor_mm2", "min_tissue_mm2", "tumor_distance_um"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise TSRError(f"{option(name)} {getattr(self, name)} must be 0 or more")
        if self.resamples < 1:
            raise TSRError(f"--resamples {self.resamples} must be 1 or more")
        chosen = [name for name in (self.tumor, self.stroma, self.necrosis) if name]
        if len(set(chosen)) < len(chosen):
            raise TSRError(
                f"--tumor {self.tumor!r}, --stroma {self.stroma!r} and --necrosis {self.necrosis!r} must differ"
            )

    def check_labels(self, labels: Sequence[str]) -> None:
        """Check this definition against a model's labels.

        Raises:
          TSRError: the model lacks a label, or the thresholds do not match its labels.
        """
        known = ", ".join(labels)
        for name in ("tumor", "stroma", "necrosis"):
            label = getattr(self, name)
            if label not in labels and (label or name != "necrosis"):
                raise TSRError(f"the model has no label {label!r} ({option(name)}); choose one of {known}")
        if self.thresholds and set(self.thresholds) != set(labels):
            raise TSRError(
                f"thresholds are given for {', '.join(self.thresholds)}, but the model's labels are {known}: "
                "give one threshold per label, or none"
            )
        for label, value in self.thresholds.items():
            if not 0 <= value <= 1:
                raise TSRError(f"the threshold {value} of label {label!r} must be between 0 and 1")

    def sentences(self) -> list[str]:
        """The rules for measuring areas, as sentences."""
        if self.measure == "probability":
            out = ["the area of a label is the sum of its probability over the tissue tiles"]
        elif not self.thresholds:
            out = ["a tile counts fully for its most probable label"]
        else:
            out = ["a tile counts fully for each label whose probability is at or above the label's threshold"]
            out.append(
                {
                    "probability": "a tile with both tumor and stroma is divided in proportion to their probabilities",
                    "half": "a tile with both tumor and stroma counts half for each",
                    "both": "a tile with both tumor and stroma counts fully for each",
                }[self.policy]
            )
        if self.tumor_distance_um:
            out.append(
                f"stroma counts only in tiles whose centre is at most {self.tumor_distance_um:g} µm from the centre of "
                "a tumor tile"
            )
        return out


def option(name: str) -> str:
    """The command-line option of a field of TSRSpec."""
    return "--" + name
