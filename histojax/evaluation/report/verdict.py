"""The verdict at the top of a report: a sentence, and the four figures that are read first."""

from collections.abc import Mapping
from typing import Any

from histojax.evaluation import formatting, summary_blocks

_GOOD, _OPEN, _BAD = "clean", "open", "leak"  # names of the page's colours
_N_FIGURES = 4


def verdict(source: Mapping[str, Any]) -> dict[str, Any]:
    """Judge a source by its accuracy beside that of the best constant answer.

    Args:
      source: an entry of `sources` of `report_json.describe`.

    Returns:
      `tone` (of the box), `sentences`, and `figures`: up to four dicts with `key`, `estimate` and `note`.
    """
    block = source["splits"][source["split"]]
    if source["kind"] == "labels":
        tone, sentences = _of_labels(block)
        figures = _label_figures(block)
    else:
        answer, accuracy = f"“{block['majority_baseline']['class']}”", block["majority_baseline"]["accuracy"]
        tone, sentence = _against_constant(block["image"]["accuracy"], accuracy, answer)
        sentences, figures = [sentence], _class_figures(source, block)
    reservations = _reservations(source, block)
    if reservations and tone == _GOOD:
        tone = _OPEN
    return {"tone": tone, "sentences": [*sentences, *reservations], "figures": figures[:_N_FIGURES]}


def _against_constant(estimate: Mapping[str, float | None], baseline: float, answer: str) -> tuple[str, str]:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    share = f"{baseline:.1%}".replace("%", " %")
    if low is None or high is None:
        beside = "above" if value is not None and value > baseline else "not above"
        return _OPEN, f"Accuracy {beside} the {share} of always answering {answer}, but without an interval."
    if low > baseline:
        return _GOOD, f"Better than always answering {answer}, which is right for {share} of the images."
    if high < baseline:
        return _BAD, f"Worse than always answering {answer}, which is right for {share} of the images."
    return _OPEN, f"Not clearly better than always answering {answer}, which is right for {share} of the images."


def _of_labels(block: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Judge each label, and name the labels by their verdicts."""
    names: dict[str, list[str]] = {_GOOD: [], _OPEN: [], _BAD: []}
    for name, label in block["labels"].items():
        tone, _ = _against_constant(label["accuracy"], label["baseline"]["accuracy"], "")
        names[tone].append(name)
    texts = {_GOOD: "Better than", _OPEN: "Not clearly better than", _BAD: "Worse than"}
    sentences = [
        f"{text} one answer for all images: {', '.join(names[tone])}." for tone, text in texts.items() if names[tone]
    ]
    return next(tone for tone in (_BAD, _OPEN, _GOOD) if names[tone]), sentences


def _class_figures(source: Mapping[str, Any], block: Mapping[str, Any]) -> list[dict[str, Any]]:
    image, baseline, n_classes = block["image"], block["majority_baseline"], len(source["classes"])
    figures = [
        _figure("accuracy", image["accuracy"], f"always {baseline['class']}: {baseline['accuracy']:.3f}"),
        _figure("balanced_accuracy", image["balanced_accuracy"], f"one answer for all: {1 / n_classes:.3f}"),
        _figure("auroc", image["auroc"], "chance: 0.500"),
    ]
    if "patient" in block:
        rate = block["patient"]["recognition_rate"]
        return [*figures, _figure("patient recognition_rate", rate, f"mean over {block['n_patients']} patients")]
    return [
        *figures,
        _figure("gmean", image["gmean"], f"always {baseline['class']}: {formatting.number(baseline['gmean'])}"),
    ]


def _label_figures(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    image, labels = block["image"], block["labels"].values()
    chance = sum(label["prevalence"] for label in labels) / len(labels)
    return [
        _figure("mean_average_precision", image["mean_average_precision"], f"chance: {chance:.3f}"),
        _figure("auroc_macro", image["auroc_macro"], "chance: 0.500"),
        _figure("f1_macro", image["f1_macro"], "mean over the labels"),
        _figure("subset_accuracy", image["subset_accuracy"], "every label right"),
    ]


def _figure(key: str, estimate: Mapping[str, float | None], note: str) -> dict[str, Any]:
    defined = estimate["value"] is not None
    return {"key": key, "estimate": estimate, "note": note if defined else "a class or label has no images"}


def _reservations(source: Mapping[str, Any], block: Mapping[str, Any]) -> list[str]:
    """List why even a good figure may mislead."""
    sentences = []
    unit = block["resampled"]
    n_units = block.get(f"n_{unit.replace(' ', '_')}s") or block["n_images"]
    if n_units < summary_blocks.FEW_UNITS:
        sentences.append(f"Rough: the test has only {n_units} {unit}{'' if n_units == 1 else 's'}.")
    if source["facts"]["synthetic"]:
        sentences.append("The images are synthetic: the results say nothing about tissue.")
    shared = source["sides"]["shared"]
    found = [
        f"{n} {plural}" for key, plural in (("patient_id", "patients"), ("case_id", "cases")) if (n := shared.get(key))
    ]
    if found:
        sentences.append(f"Optimistic: {' and '.join(found)} are on several sides of the split.")
    if (source.get("audit") or {}).get("leaks"):
        sentences.append("Optimistic: the audit found leaks.")
    return sentences
