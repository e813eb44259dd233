"""report.html: a report on one page, with its plots inside, for a browser or for print."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.files import atomic_write
from histojax.evaluation import formatting, summary_blocks
from histojax.evaluation.report import html_templates, plots, section_errors

LISTED = 60  # patients that the page shows
# Metrics of the overview table of several sources: key, heading.
_HEADLINE = (
    ("accuracy", "accuracy"), ("recognition_rate", "patient recognition rate"), ("gmean", "GMean"),
    ("auroc", "AUROC"), ("f1_macro", "macro F1"), ("mean_average_precision", "mAP"), ("ece", "ECE"),
)  # fmt: skip
_DISPLAY_NAMES = {
    "auroc": "AUROC", "auroc_macro": "AUROC, macro", "ece": "ECE", "f1": "F1", "f1_macro": "F1, macro",
    "f1_micro": "F1, micro", "gmean": "GMean", "iba": "IBA", "brier": "Brier score",
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
        images={"sources": images, "comparison": _comparison_plot(report)},
        headline=headline,
        several_tests=n_tests > 1,
        definitions=DEFINITIONS,
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
    """Draw a source's plots and encode all its images as data URLs."""
    curves = {}
    if source["positive"] is not None:  # one line per level: a single plot holds them all
        levels = {name: level for name, level in source["levels"].items() if level["curves"]}
        lines = {f"{name}s": level["curves"][source["positive"]] for name, level in levels.items()}
        curves["All levels"] = plots.curves_svg(lines)
    else:
        for name, level in source["levels"].items():
            limit = plots.MAX_LINES
            caption = f"{name.capitalize()} level" + (
                f", the first {limit} only" if len(level["curves"]) > limit else ""
            )
            curves[caption] = plots.curves_svg(level["curves"])
    training = plots.training_svg(source["training"])
    return {
        "curves": {caption: _svg_url(svg) for caption, svg in curves.items() if svg is not None},
        "reliability": [_svg_url(plots.reliability_svg(entry)) for entry in source["calibration"]],
        "training": None if training is None else _svg_url(training),
        "thumbnails": {name: html_templates.inline(data, "image/jpeg") for name, data in thumbnails.items()},
        "missing": missing,
    }


def _comparison_plot(report: Mapping[str, Any]) -> str | None:
    """Draw the curves of all sources in one plot, if each source has a positive class."""
    sources = report["sources"]
    if len(sources) < 2 or any(source["positive"] is None for source in sources):
        return None
    lines = {source["name"]: source["levels"]["image"]["curves"][source["positive"]] for source in sources}
    svg = plots.curves_svg(lines)
    return None if svg is None else _svg_url(svg)


def _svg_url(svg: bytes) -> str:
    return html_templates.inline(svg, "image/svg+xml")


def _has(block: Mapping[str, Any], key: str) -> bool:
    return key in block["image"] or key in block.get("patient", {})


def _metric_names(levels: Mapping[str, Mapping[str, Any]], positive: str | None) -> list[str]:
    """List the metrics of all levels; those that only patients and cases have follow accuracy."""
    # Without a positive class these are macro means, which already have their own rows.
    repeated = () if positive is not None else ("precision", "recall", "f1")
    names = [name for name in levels["image"]["figures"] if name not in repeated]
    others = [key for level in levels.values() for key in level["figures"] if key not in (*names, *repeated)]
    at = names.index("accuracy") + 1
    return [*names[:at], *dict.fromkeys(others), *names[at:]]


def _shade(count: int, total: int) -> str:
    """Colour a cell: the larger its fraction of the total, the darker."""
    fraction = count / total if total else 0.0
    text = "#fff" if fraction > 0.55 else "#1a1a1a"
    return f"background: rgba(0, 90, 160, {0.06 + 0.74 * fraction:.2f}); color: {text}"


def _number(value: float | None) -> str:
    return formatting.number(value, digits=3 if value is None or abs(value) < 100 else 1, undefined="–")
