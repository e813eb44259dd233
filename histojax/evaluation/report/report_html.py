"""report.html: a report on one page, with its plots inside, for a browser or for print."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.files import atomic_write
from histojax.evaluation import formatting, summary_blocks
from histojax.evaluation.report import (
    html_templates,
    plots,
    robustness_plots,
    section_errors,
    section_levels,
    section_robustness,
    verdict,
)

LISTED = 60  # patients that the page shows
_MAX_MATRIX = 8  # classes of a confusion matrix that stands beside the curves; a larger one has a section
_CALIBRATION = ("ece", "brier", "log_loss")  # metrics that the page shows under Calibration
# Metrics of the overview table of several sources: key, heading.
_HEADLINE = (
    ("accuracy", "accuracy"), ("recognition_rate", "patient recognition rate"), ("gmean", "GMean"),
    ("auroc", "AUROC"), ("f1_macro", "macro F1"), ("mean_average_precision", "mAP"), ("ece", "ECE"),
)  # fmt: skip
_DISPLAY_NAMES = {
    "auroc": "AUROC", "auroc_macro": "AUROC, macro", "ece": "ECE", "f1": "F1", "f1_macro": "F1, macro",
    "f1_micro": "F1, micro", "gmean": "GMean", "iba": "IBA", "brier": "Brier score", "ece_adaptive": "ECE, equal mass",
    "ece_classwise": "ECE, classwise", "brier_reliability": "Reliability", "brier_resolution": "Resolution",
    "brier_uncertainty": "Uncertainty", "brier_within_bins": "Within bins",
}  # fmt: skip
DEFINITIONS = {
    "accuracy": "fraction of images classified correctly; with labels, the mean over the labels",
    "balanced_accuracy": "mean recall over the classes",
    "precision": "fraction of the images predicted as a class that belong to it; 0 where none is predicted",
    "recall": "fraction of the images of a class that are predicted as it (sensitivity)",
    "specificity": "fraction of the images outside a class that are not predicted as it",
    "f1": "harmonic mean of precision and recall",
    "gmean": "geometric mean of the recalls",
    "iba": "index of balanced accuracy, α = 0.1 (García et al. 2012)",
    "auroc": "area under the ROC curve: how often a positive image has a higher score than a negative one",
    "average_precision": "Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the precision-recall curve, not interpolated",
    "brier": "mean squared error of the probability of the positive class or label; summed over more than two classes",
    "ece": "expected calibration error, 15 bins of equal width (Guo et al. 2017)",
    "ece_adaptive": "the same in 15 bins of equally many images (Nixon et al. 2019)",
    "ece_classwise": "mean over the classes of the ECE of each class's probability (Kull et al. 2019)",
    "brier_reliability": "part of the Brier score: squared distance of mean probability and observed fraction in 15 "
    "bins (Murphy 1973); 0 is calibrated",
    "brier_resolution": "part that is subtracted: how far the observed fractions of the bins lie apart",
    "brier_uncertainty": "part that no model changes: prevalence · (1 − prevalence), summed over more than two classes",
    "brier_within_bins": "the rest: what probabilities vary within the bins",
    "log_loss": "mean of −log of the probability of the true class",
    "recognition_rate": "mean over patients of the fraction of a patient's images classified correctly "
    "(Spanhol et al. 2016)",
    "majority_accuracy": "fraction of patients whose most frequent prediction is correct",
    "subset_accuracy": "fraction of images with every label correct",
    "hamming_loss": "fraction of labels that are wrong",
    "mean_average_precision": "mean of the average precisions of the labels",
}

# Thumbnails of a source's worst errors (image_id -> JPEG file), and why some or all are missing, or "".
Thumbnails = tuple[Mapping[str, bytes], str]


def write(
    path: str | os.PathLike[str], report: Mapping[str, Any], thumbnails: Sequence[Thumbnails], version: str
) -> None:
    """Write the page of `render` atomically."""
    page = render(report, thumbnails, version)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def render(report: Mapping[str, Any], thumbnails: Sequence[Thumbnails], version: str) -> str:
    """Render one HTML page that needs no other file, no script and no network. Every value is escaped.

    Args:
      report: as `report_json.describe` returns it; a source may have an additional `audit`.
      thumbnails: one entry per source.
      version: of histojax.
    """
    environment = html_templates.environment()
    environment.filters |= {"number": _number, "metric": display_name}
    names = [source["name"] for source in report["sources"]]
    images = [_images(source, *pair) for source, pair in zip(report["sources"], thumbnails, strict=True)]
    headline = [
        pair
        for pair in _HEADLINE
        if any(_has(source["splits"][source["split"]], pair[0]) for source in report["sources"])
    ]
    n_tests = sum(len(pair["mcnemar"]) for pair in report["comparisons"] if not pair["refused"])
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=f"Report on {names[0]}" if len(names) == 1 else f"Report on {len(names)} sources",
        images={"sources": images, "comparison": _comparison_plots(report)},
        headline=headline,
        several_tests=n_tests > 1,
        definitions=DEFINITIONS,
        judge=verdict.verdict,
        worst_shift=section_robustness.worst,
        shown_levels=section_levels.shown_levels,
        calibration=_calibration,
        missing_p=_missing_p,
        metric_names=_metric_names,
        shade=_shade,
        listed=LISTED,
        few_images=section_errors.FEW_IMAGES,
        few_units=summary_blocks.FEW_UNITS,
        version=version,
    )


def display_name(key: str) -> str:
    """Spell the name of a metric for readers; `LABEL: metric` keeps its label."""
    label, _, name = key.rpartition(": ")
    spelled = _DISPLAY_NAMES.get(name, name.replace("_", " "))
    return f"{label}: {spelled}" if label else spelled[:1].upper() + spelled[1:]


def _images(source: Mapping[str, Any], thumbnails: Mapping[str, bytes], missing: str) -> dict[str, Any]:
    """Draw a source's plots and encode all its images as data URLs.

    The confusion matrix and the curves of the image level stand beside the verdict, in `top`.
    """
    levels = section_levels.shown_levels(source)
    matrices = {name: level["confusion_matrix"] for name, level in levels.items() if level.get("confusion_matrix")}
    matrix = matrices.pop("image") if len(matrices.get("image", ())) in range(1, _MAX_MATRIX + 1) else []
    lines = _lines(levels, source["positive"])
    n_curves = max(map(len, lines.values()))
    note = f"Only the first {plots.MAX_LINES} of {n_curves} curves are drawn." if n_curves > plots.MAX_LINES else ""
    curves = {name: _svg_urls(plots.curves_svgs(curves)) for name, curves in lines.items()}
    return {
        "top": {"confusion": matrix, "curves": curves.pop("image"), "note": note},
        "matrices": matrices,
        "curves": {name: urls for name, urls in curves.items() if urls},
        "reliability": [_svg_urls(plots.reliability_svgs(entry)) for entry in _calibration(source)],
        "selective": _svg_urls(plots.selective_svgs(source["selective"])),
        "robustness": _panels(source["robustness"]),
        "training": _svg_urls(plots.training_svgs(source["training"])),
        "thumbnails": {name: html_templates.inline(data, "image/jpeg") for name, data in thumbnails.items()},
        "missing": missing,
    }


def _panels(run: Mapping[str, Any] | None) -> dict[str, str]:
    """Draw the curves of a run's robustness, by the title of the shift."""
    found = {} if run is None else robustness_plots.panels(run)
    return {title: html_templates.inline(svg, "image/svg+xml") for title, svg in found.items()}


def _lines(levels: Mapping[str, Mapping[str, Any]], positive: str | None) -> dict[str, dict[str, Any]]:
    """Take the curves of each plot: one plot of all levels for a positive class, else one per level."""
    if positive is None:
        return {name: level["curves"] for name, level in levels.items()}
    return {"image": {f"{name}s": level["curves"][positive] for name, level in levels.items() if level["curves"]}}


def _comparison_plots(report: Mapping[str, Any]) -> list[str]:
    """Draw the curves of all sources together, if each source has a positive class."""
    sources = report["sources"]
    if len(sources) < 2 or any(source["positive"] is None for source in sources):
        return []
    lines = {source["name"]: source["levels"]["image"]["curves"][source["positive"]] for source in sources}
    return _svg_urls(plots.curves_svgs(lines))


def _calibration(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Take the calibration of each label, or of the predicted class; the positive class repeats it with another ECE."""
    entries: list[Mapping[str, Any]] = source["calibration"]
    return entries if source["kind"] == "labels" else entries[:1]


def _missing_p(pair: Mapping[str, Any]) -> list[str]:
    """Say why some p values of a comparison are missing."""
    reasons = []
    if any(test["chi2_p"] is None for test in pair["mcnemar"].values()):
        reasons.append("χ² needs an image that only one of the sources gets right")
    for name, test in pair["auroc"].items():
        for part in (test["images"], test["clusters"]):
            if part is not None and part["why_no_p"]:
                reasons.append(f"no p value for {name}, because {part['why_no_p']}")
    if not pair["auroc"]:
        reasons.append("no AUROC, because the images in both sources are all of one class")
    return reasons


def _svg_urls(svgs: Sequence[bytes]) -> list[str]:
    return [html_templates.inline(svg, "image/svg+xml") for svg in svgs]


def _has(block: Mapping[str, Any], key: str) -> bool:
    return key in block["image"] or key in block.get("patient", {})


def _metric_names(levels: Mapping[str, Mapping[str, Any]], positive: str | None) -> list[str]:
    """List the metrics of all levels; those that only patients and cases have follow accuracy."""
    # Without a positive class these are macro means, which already have their own rows.
    repeated = () if positive is not None else ("precision", "recall", "f1")
    names = [name for name in levels["image"]["figures"] if name not in repeated]
    names = [name for name in names if name not in _CALIBRATION]
    others = [
        key for level in levels.values() for key in level["figures"] if key not in (*names, *repeated, *_CALIBRATION)
    ]
    at = names.index("accuracy") + 1
    return [*names[:at], *dict.fromkeys(others), *names[at:]]


def _shade(count: int, total: int) -> str:
    """Colour a cell: the larger its fraction of the total, the darker."""
    fraction = count / total if total else 0.0
    text = "#fff" if fraction > 0.55 else "#1a1a1a"
    return f"background: rgba(0, 90, 160, {0.06 + 0.74 * fraction:.2f}); color: {text}"


def _number(value: float | None) -> str:
    return formatting.number(value, digits=3 if value is None or abs(value) < 100 else 1, undefined="undefined")
