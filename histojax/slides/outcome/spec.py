"""How the association of stroma percentages with outcome is measured, and the formulas by name."""

import dataclasses
import math
import re
from collections.abc import Sequence

from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean
from histojax.slides.tsr.spec import CUTOFFS, Cutoff

USE = "Research use only. An association in one cohort, not a finding on one patient; not for diagnosis or treatment."
TIME_UNITS = ("days", "weeks", "months", "years")
# Part of a slide -> what its columns of slides.csv start with.
PARTS = {"whole_tissue": "", "region": "region_", "hot_spot": "hot_spot_"}
COMBINE = {
    "highest": "a patient with several slides counts by the most stroma-rich one",
    "area": "a patient with several slides counts by all of them, weighted by their area of tumor and stroma",
}
MIN_EVENTS = 5  # with fewer events nothing is computed
EVENTS_PER_COEFFICIENT = 10  # with fewer, every output warns

FORMULAS = {
    "kaplan_meier": (
        "product-limit estimator; 95 % interval S^exp(± 1.96 √V / log S) with Greenwood's V = Σ d / (n (n − d)), the "
        "log-log interval"
    ),
    "log_rank": "χ² = (observed − expected)² / hypergeometric variance, one degree of freedom, two-sided",
    "cox": "hazard(t | x) = hazard0(t) exp(β x), Efron's likelihood of ties; 95 % interval exp(β ± 1.96 SE) (Wald)",
    "p": "of the likelihood ratio: 2 (log L with stroma − log L without) is χ² with one degree of freedom",
    "per_sd": "exp(β SD): ratio of the hazards of two patients whose stroma percentages differ by one SD of the cohort",
    "concordance": (
        "Harrell's C: fraction of comparable pairs of patients of whom the one with more stroma has the earlier event; "
        "equal percentages count half. More stroma means higher risk, fixed in advance: C may lie below 0.5"
    ),
    "corrected": (
        "β / λ with λ = cov(predicted, reference) / var(predicted) in the agreement study (regression calibration: "
        "Prentice 1982; Rosner, Willett and Spiegelman 1989); 95 % interval by Fieller's theorem from the standard "
        "errors of β and λ"
    ),
}


@dataclasses.dataclass(frozen=True)
class OutcomeSpec:
    """How outcome is read and analysed; raises RunError for an invalid field.

    Attributes:
      time_unit: unit of the times.
      patient_column: column of the patients in the clinical table.
      time_column: column of the follow-up.
      event_column: column of the event, 0 or 1.
      slide_column: column of slide names in the clinical table; empty for none.
      patient_pattern: regular expression on slide names with a group `patient`; empty for none.
      part: part of a slide whose percentage counts, in PARTS.
      combine: how a patient's slides are combined, in COMBINE.
      cutoffs: names in CUTOFFS, or percentages: stroma-high is above.
      adjust: columns of the clinical table that the hazard ratios are adjusted for.
      categorical: those of `adjust` whose numbers are names of categories.
      resamples: bootstrap resamples.
      seed: random seed of the bootstrap.
    """

    time_unit: str
    patient_column: str = "patient_id"
    time_column: str = "time"
    event_column: str = "event"
    slide_column: str = ""
    patient_pattern: str = ""
    part: str = "whole_tissue"
    combine: str = "highest"
    cutoffs: Sequence[str] = ("default",)
    adjust: Sequence[str] = ()
    categorical: Sequence[str] = ()
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("time_unit", TIME_UNITS), ("part", tuple(PARTS)), ("combine", tuple(COMBINE))):
            if getattr(self, name) not in known:
                raise RunError(f"--{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.patient_pattern and self.slide_column:
            raise RunError("--patient_pattern and --slide_column both name the patient of a slide: give one of them")
        try:
            groups = re.compile(self.patient_pattern).groupindex
        except re.error as error:
            raise RunError(f"--patient_pattern {self.patient_pattern!r}: {error}") from error
        if self.patient_pattern and "patient" not in groups:
            raise RunError(f"--patient_pattern {self.patient_pattern!r} has no group (?P<patient>…)")
        columns = [self.patient_column, self.time_column, self.event_column, self.slide_column, *self.adjust]
        if repeated := {name for name in columns if name and columns.count(name) > 1}:
            raise RunError(f"column {', '.join(sorted(repeated))} is named for two purposes, or twice in --adjust")
        if unknown := [name for name in self.categorical if name not in self.adjust]:
            raise RunError(f"--categorical {', '.join(unknown)} is not among the columns of --adjust")
        self.rules()

    def rules(self) -> dict[str, Cutoff]:
        """The cut-offs by name, such as "default" or "40".

        Raises:
          RunError: there is none, one is unknown, or two are the same.
        """
        rules: dict[str, Cutoff] = {}
        for name in self.cutoffs:
            rule = CUTOFFS.get(name) or _above(name)
            for other, known in rules.items():
                if (rule.at, rule.inclusive) == (known.at, known.inclusive):
                    raise RunError(f"--cutoff {other} and {name} are the same rule: name it once")
            rules[name] = rule
        if not rules:
            raise RunError(f"--cutoff is empty: name one of {', '.join(CUTOFFS)}, or a percentage")
        return rules


def _above(text: str) -> Cutoff:
    """The cut-off at a percentage that is written as text."""
    try:
        at = float(text)
    except ValueError:
        raise RunError(
            f"--cutoff {text!r} is neither a percentage nor one of {', '.join(CUTOFFS)}{did_you_mean(text, CUTOFFS)}"
        ) from None
    if not (math.isfinite(at) and 0 < at < 100):
        raise RunError(f"--cutoff {text} must lie between 0 and 100 %")
    return Cutoff(f"stroma-high if stroma percentage > {at:g} %, else stroma-low", at, False)
