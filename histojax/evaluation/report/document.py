"""A report on one page: report.html, with its figures inside, to be read in a browser or printed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.files import atomic_write
from histojax.evaluation import summary_blocks
from histojax.evaluation.report import figures, pages, parts

LISTED = 60  # patients that the page shows
# The figures that stand beside each other where there are several sources.
_HEADLINE = (
    ("accuracy", "accuracy"), ("recognition_rate", "patient recognition rate"), ("gmean", "GMean"),
    ("auroc", "AUROC"), ("f1_macro", "macro F1"), ("mean_average_precision", "mAP"), ("ece", "ECE"),
)  # fmt: skip
_WORDS = {
    "auroc": "AUROC", "auroc_macro": "AUROC, macro", "ece": "ECE", "f1": "F1", "f1_macro": "F1, macro",
    "f1_micro": "F1, micro", "gmean": "GMean", "iba": "IBA", "brier": "Brier score",
}  # fmt: skip
DEFINITIONS = {
    "accuracy": "share of images classified right; of several labels, the mean over the labels",
    "balanced_accuracy": "mean of the recalls of the classes",
    "precision": "of the images predicted so, the share that is so; 0 where none is predicted",
    "recall": "of the images that are so, the share predicted so (sensitivity)",
    "specificity": "of the images that are not so, the share not predicted so",
    "f1": "harmonic mean of precision and recall",
    "gmean": "geometric mean of the recalls",
    "iba": "index of balanced accuracy, α = 0.1 (García et al. 2012)",
    "auroc": "area under the ROC curve: how often a positive image has a higher score than a negative one",
    "average_precision": "Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the precision-recall curve, not interpolated",
    "brier": "mean squared error of the probability of the positive class or label; summed over more than two classes",
    "ece": "expected calibration error, 15 bins of equal width (Guo et al. 2017)",
    "log_loss": "mean of −log of the probability of the truth",
    "recognition_rate": "mean over patients of the share of a patient's images classified right (Spanhol et al. 2016)",
    "majority_accuracy": "share of patients whose most frequent prediction is right",
    "subset_accuracy": "share of images of which every label is right",
    "hamming_loss": "share of labels that are wrong",
    "mean_average_precision": "mean of the labels' average precisions",
}


def write(
    path: str | os.PathLike[str], report: Mapping[str, Any], pictures: Sequence["Pictures"], version: str
) -> None:
    """Writes what `render` gives, whole or not at all."""
    page = render(report, pictures, version)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


# Thumbnails of a source's worst errors, JPEG by image_id, and why there are none, in words, or "".
Pictures = tuple[Mapping[str, bytes], str]


def render(report: Mapping[str, Any], pictures: Sequence[Pictures], version: str) -> str:
    """One HTML page that needs no other file, no script and no network; everything from outside is escaped.

    Args:
      report: as `report.describe` gives it; a source may have `audit` besides.
      pictures: a pair a source.
      version: of the program.
    """
    environment = pages.environment()
    environment.filters |= {"number": _number, "words": words}
    names = [source["name"] for source in report["sources"]]
    drawn = [_drawn(source, *of_one) for source, of_one in zip(report["sources"], pictures, strict=True)]
    headline = [
        pair
        for pair in _HEADLINE
        if any(_has(source["splits"][source["split"]], pair[0]) for source in report["sources"])
    ]
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=f"Report on {names[0]}" if len(names) == 1 else f"Report on {len(names)} sources",
        figures={"sources": drawn, "comparison": _compared(report)},
        headline=headline,
        many=sum(len(pair["mcnemar"]) for pair in report["comparisons"] if not pair["refused"]) > 1,
        definitions=DEFINITIONS,
        metric_names=_metric_names,
        shade=_shade,
        listed=LISTED,
        few=parts.FEW_IMAGES,
        few_units=summary_blocks.FEW_UNITS,
        version=version,
    )


def words(key: str) -> str:
    """A figure's name as a reader knows it."""
    label, _, name = key.rpartition(": ")
    told = _WORDS.get(name, name.replace("_", " "))
    return f"{label}: {told}" if label else told[:1].upper() + told[1:]


def _drawn(source: Mapping[str, Any], thumbnails: Mapping[str, bytes], no_pictures: str) -> dict[str, Any]:
    """A source's pictures, as addresses that hold them."""
    curves = {}
    if source["positive"] is not None:  # one line a level: they belong into one picture
        levels = {name: level for name, level in source["levels"].items() if level["curves"]}
        lines = {f"{name}s": level["curves"][source["positive"]] for name, level in levels.items()}
        curves["all levels"] = figures.curve_figure(lines)
    else:
        for name, level in source["levels"].items():
            few = figures.MOST_LINES
            caption = f"{name} level" + (f", the first {few} only" if len(level["curves"]) > few else "")
            curves[caption] = figures.curve_figure(level["curves"])
    training = figures.training_figure(source["training"])
    return {
        "curves": {caption: _svg(picture) for caption, picture in curves.items() if picture is not None},
        "reliability": [_svg(figures.reliability_figure(entry)) for entry in source["calibration"]],
        "training": None if training is None else _svg(training),
        "thumbnails": {name: pages.inline(data, "image/jpeg") for name, data in thumbnails.items()},
        "no_pictures": no_pictures,
    }


def _compared(report: Mapping[str, Any]) -> str | None:
    """The curves of all sources in one picture, where each has one that is the whole story."""
    sources = report["sources"]
    if len(sources) < 2 or any(source["positive"] is None for source in sources):
        return None
    lines = {source["name"]: source["levels"]["image"]["curves"][source["positive"]] for source in sources}
    picture = figures.curve_figure(lines)
    return None if picture is None else _svg(picture)


def _svg(picture: bytes) -> str:
    return pages.inline(picture, "image/svg+xml")


def _has(block: Mapping[str, Any], key: str) -> bool:
    return key in block["image"] or key in block.get("patient", {})


def _metric_names(levels: Mapping[str, Mapping[str, Any]], positive: str | None) -> list[str]:
    """The figures of all levels; those that only patients have stand behind accuracy."""
    # Without a positive class those are macro means already.
    twice = () if positive is not None else ("precision", "recall", "f1")
    names = [name for name in levels["image"]["figures"] if name not in twice]
    further = [key for level in levels.values() for key in level["figures"] if key not in (*names, *twice)]
    at = names.index("accuracy") + 1
    return [*names[:at], *dict.fromkeys(further), *names[at:]]


def _shade(count: int, total: int) -> str:
    """A cell's colours: the larger its share of the row, the darker."""
    share = count / total if total else 0.0
    return f"background: rgba(0, 90, 160, {0.06 + 0.74 * share:.2f}); color: {'#fff' if share > 0.55 else '#1a1a1a'}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
