"""A stroma percentage corrected for the model's errors, with an interval that holds them, and what a model can tell."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from histojax.evaluation import metrics
from histojax.evaluation.metrics import Array
from histojax.slides.tsr.intervals import clustered_proportion, wilson
from histojax.slides.tsr.spec import TSRError

MIN_ABOVE_CHANCE = 0.2  # of sensitivity + specificity - 1, below which a model does not tell a label from the rest
SHOWN, NOT_SHOWN, CANNOT_TELL, UNKNOWN = "tells apart", "not shown", "cannot tell", "unknown"

MIN_SOURCES = 4  # validation patients; how much fewer of them differ is anyone's guess
_MIN_BOUND = 0.1  # of the lower end of sensitivity + specificity - 1, which divides
_MARGIN = 0.01  # of a corrected fraction beyond 0 … 1, where chance among the tiles may explain it
_MIN_POSSIBLE = 0.2  # of the draws must allow the fraction of tiles that was observed
_MOST_ALIKE = 0.95  # of the correlation within a source, to keep the beta distribution proper


class LabelDraws(NamedTuple):
    """A label on a slide and in resamples of its blocks.

    Attributes:
      label: its name.
      observed: the fraction of the slide's tiles that carry it.
      fraction: the same in each resample, (r,).
      area: its area in each resample, (r,).
    """

    label: str
    observed: float
    fraction: Array
    area: Array


class _Counts(NamedTuple):
    """Right answers and trials of a rate, in each source (u,); `clustered` if sources may differ."""

    correct: Array
    trials: Array
    clustered: bool


def corrected_percentage(
    tumor: LabelDraws, stroma: LabelDraws, confusion: Mapping[str, Any] | None, level: float, seed: int
) -> dict[str, Any]:
    """Correct a stroma percentage for the model's errors, with an interval for tissue and errors together.

    The true fraction of a label is (observed + specificity - 1) / (sensitivity + specificity - 1) (Rogan and Gladen
    1978). Each area is scaled by the corrected over the observed fraction, so that a tile divided between the two
    labels stays divided. Every resample of the slide's blocks has its own sensitivities and specificities, drawn for a
    slide that the model has not seen: the mean over validation sources is uncertain, and a slide differs from the mean
    as those sources do (beta-binomial). Rates that cannot give the observed fraction are left out.

    Args:
      tumor: the tumor in resamples of the slide's blocks.
      stroma: the stroma in the same resamples.
      confusion: counts of each label on validation images, at the thresholds used here: [tn, fp, fn, tp] of
        independent images, or one such row per patient, slide or source image.
      level: of the percentiles of the resamples.
      seed: of the random numbers.

    Returns:
      {value, low, high, draws, labels, reason, note}: the median of the draws, their interval and the draws themselves
      (n,). The figures are None and the draws empty if they cannot be determined, with the reason.

    Raises:
      TSRError: the confusion does not hold counts of four.
    """
    if not confusion:
        return unknown("the checkpoint has no confusion counts of its labels on validation images")
    rng = np.random.default_rng([seed, 1])
    labels: dict[str, Any] = {}
    areas, possible = [], np.ones(len(tumor.fraction), bool)
    for drawn in (tumor, stroma):
        counts, reason = _counts(drawn.label, confusion)
        if reason:
            return unknown(reason, labels)
        labels[drawn.label] = {name: _rate(rate) for name, rate in counts.items()}
        sources = [rate["sources"] for rate in labels[drawn.label].values() if rate["sources"] is not None]
        if sources and min(sources) < MIN_SOURCES:
            return unknown(
                f"label {drawn.label!r} needs at least {MIN_SOURCES} validation patients, slides or source images with "
                f"and without it; the model has {min(sources)}",
                labels,
            )
        sensitivity, specificity = (draw_rates(rng, rate, len(possible)) for rate in counts.values())
        above_chance = sensitivity + specificity - 1
        if np.quantile(above_chance, 0.025) < _MIN_BOUND:
            ends = " to ".join(f"{end:.2f}" for end in np.quantile(above_chance, (0.025, 0.975)))
            return unknown(
                f"on another slide the model may recognize label {drawn.label!r} hardly better than chance: "
                f"sensitivity + specificity - 1 is {ends} by its validation images, at least {_MIN_BOUND} is needed",
                labels,
            )
        corrected = metrics.divide(drawn.fraction + specificity - 1, above_chance)
        allowed = (above_chance > 0) & (corrected >= -_MARGIN) & (corrected <= 1 + _MARGIN)
        if allowed.mean() < _MIN_POSSIBLE:
            least, most = 1 - labels[drawn.label]["specificity"]["value"], labels[drawn.label]["sensitivity"]["value"]
            return unknown(
                f"{drawn.observed:.1%} of the tiles carry label {drawn.label!r}, but with the sensitivity and "
                f"specificity of the validation images it would be {least:.1%} to {most:.1%}: the model makes other "
                "errors on this slide",
                labels,
            )
        possible &= allowed
        areas.append(drawn.area * metrics.divide(np.clip(corrected, 0, 1), drawn.fraction, undefined=0.0))
    draws = metrics.divide(100 * areas[1], areas[0] + areas[1])[possible]
    draws = draws[np.isfinite(draws)]
    if len(draws) < _MIN_POSSIBLE * len(possible):
        return unknown("the model's errors alone may explain all the tumor and stroma that it found", labels)
    low, value, high = (float(end) for end in np.quantile(draws, ((1 - level) / 2, 0.5, (1 + level) / 2)))
    if low == high:
        return unknown("only one of the two labels was found", labels)
    figures = {"value": value, "low": low, "high": high, "draws": draws}
    return figures | {"labels": labels, "reason": None, "note": _note(labels)}


def model_status(labels: Sequence[str], confusion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say whether a model tells labels from everything else, by its errors on validation images.

    Args:
      labels: those that a ratio is made of.
      confusion: as for `corrected_percentage`.

    Returns:
      {status, reason}. `tells apart`: for each label, the lower ends of sensitivity and specificity add up to more than
      1. `cannot tell`: for one, sensitivity + specificity - 1 is below `MIN_ABOVE_CHANCE`. `not shown`: neither.
      `unknown`: there are no counts. The reason is None for the first.

    Raises:
      TSRError: the confusion does not hold counts of four.
    """
    status, reason = SHOWN, None
    for label in labels:
        if not confusion:
            return {"status": UNKNOWN, "reason": "the checkpoint has no confusion counts on validation images"}
        counts, missing = _counts(label, confusion)
        if missing:
            return {"status": UNKNOWN, "reason": missing}
        rates = {name: _rate(rate) for name, rate in counts.items()}
        sensitivity, specificity = rates["sensitivity"], rates["specificity"]
        text = " and ".join(f"{name} {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for name, r in rates.items())
        text = f"{text} on validation images{_sources_text([sensitivity, specificity])}"
        if sensitivity["value"] + specificity["value"] - 1 < MIN_ABOVE_CHANCE:
            reason = (
                f"the model cannot tell {label} from the rest: {text}; their sum is less than {MIN_ABOVE_CHANCE} above "
                "that of chance"
            )
            return {"status": CANNOT_TELL, "reason": reason}
        if status == SHOWN and sensitivity["low"] + specificity["low"] <= 1:
            status, reason = NOT_SHOWN, f"not shown that the model can tell {label} from the rest: {text}"
    return {"status": status, "reason": reason}


def unknown(reason: str, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """A corrected percentage that cannot be determined, with the reason."""
    figures = {"value": None, "low": None, "high": None, "draws": np.empty(0)}
    return figures | {"labels": labels or {}, "reason": reason, "note": None}


def draw_rates(rng: np.random.Generator, counts: _Counts, n: int) -> Array:
    """Draw a rate for n new slides, given its counts in validation sources.

    The correlation of answers within a source is estimated by analysis of variance, and drawn with the uncertainty of
    the variance between u sources, (u - 1) / chi-squared(u - 1). The mean is drawn from a beta distribution of as many
    independent trials as the correlated ones are worth, and the slide's rate around the mean.

    Args:
      rng: source of the random numbers.
      counts: of the sources; without clusters, all slides have the mean rate.
      n: number of draws.

    Returns:
      Rates within 0 … 1, (n,).
    """
    informative = counts.trials > 0
    correct, trials = counts.correct[informative], counts.trials[informative]
    total, u = trials.sum(), len(trials)
    mean = correct.sum() / total
    if not counts.clustered:
        return rng.beta(correct.sum() + 0.5, total - correct.sum() + 0.5, n)
    share = correct / trials
    between = (trials * (share - mean) ** 2).sum() / rng.chisquare(u - 1, n)
    within = (trials * share * (1 - share)).sum() / max(total - u, 1)
    size = (total - (trials**2).sum() / total) / (u - 1)  # of a source, as the analysis of variance averages it
    alike = metrics.divide(between - within, between + (size - 1) * within, undefined=0.0)
    alike = np.clip(alike, 0.0, _MOST_ALIKE)
    worth = total / (1 + ((trials**2).sum() / total - 1) * alike)
    drawn = rng.beta(mean * worth + 0.5, (1 - mean) * worth + 0.5)
    spread = 1 / np.maximum(alike, 1e-6) - 1
    tiny = 1e-6  # a beta distribution needs parameters above 0
    return rng.beta(np.maximum(drawn * spread, tiny), np.maximum((1 - drawn) * spread, tiny))


def _counts(label: str, confusion: Mapping[str, Any]) -> tuple[dict[str, _Counts], str | None]:
    """The counts of sensitivity and specificity, or why there are none."""
    if label not in confusion:
        return {}, f"the checkpoint has no confusion counts of label {label!r} on validation images"
    cells = np.asarray(confusion[label], np.float64)
    if cells.shape[-1:] != (4,) or cells.ndim > 2 or not (np.isfinite(cells) & (cells >= 0)).all():
        raise TSRError(f"the confusion of label {label!r} must be counts [tn, fp, fn, tp]; it is {confusion[label]}")
    tn, fp, fn, tp = cells.reshape(-1, 4).T
    if not (tp + fn).any() or not (tn + fp).any():
        which = "every" if (tp + fn).any() else "no"
        return {}, f"{which} validation image carries label {label!r}"
    clustered = cells.ndim == 2
    return {"sensitivity": _Counts(tp, tp + fn, clustered), "specificity": _Counts(tn, tn + fp, clustered)}, None


def _rate(counts: _Counts) -> dict[str, Any]:
    """A rate with its interval and the number of clusters that it rests on (None: images are independent)."""
    correct, trials = counts.correct.sum(), counts.trials.sum()
    if counts.clustered:
        low, high = clustered_proportion(counts.correct, counts.trials)
    else:
        low, high = wilson(float(correct), float(trials))
    sources = int((counts.trials > 0).sum()) if counts.clustered else None
    return {"value": float(correct / trials), "low": low, "high": high, "sources": sources}


def _note(labels: Mapping[str, Any]) -> str:
    """What the correction rests on."""
    sources = _sources_text([rate for rates in labels.values() for rate in rates.values()])
    return sources.removeprefix(", ") or "validation images are taken as independent"


def _sources_text(rates: Sequence[Mapping[str, Any]]) -> str:
    """The number of clusters that rates rest on, as the end of a sentence; empty if images are independent."""
    sources = [rate["sources"] for rate in rates if rate["sources"] is not None]
    if not sources:
        return ""
    least, most = min(sources), max(sources)
    number = f"{least}" if least == most else f"{least} to {most}"
    return f", from {number} validation patients, slides or source images"
