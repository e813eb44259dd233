"""Where the predictions of a report come from: facts of the run, its split and its training curves."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.settings import config_hash
from histojax.core.split_hash import GROUP_FIELDS, split_hash
from histojax.evaluation import multilabel, predictions
from histojax.evaluation.report.sources import Source

_RESULT_FACTS = (
    "protocol", "protocol_id", "split_hash", "model", "image_size", "pretrained", "checkpoint", "checkpoint_step",
)  # fmt: skip
_TRAINING_METRICS = ("loss", "accuracy", "balanced_accuracy", "gmean", "f1", "mean_average_precision")
_CURVE_POINTS = 400  # points of a training curve that are kept


def facts(source: Source) -> dict[str, Any]:
    """Collect what is known about the origin of the predictions; an unknown fact is None."""
    out: dict[str, Any] = {"predictions": source.path.name, "predictions_hash": table_hash(source.table)}
    # The folder's place on its owner's machine does not belong in a report.
    folder = f"{source.path.resolve()}/"
    for key in _RESULT_FACTS:
        value = source.results.get(key)
        out[key] = _without_folders(source, value.replace(folder, "")) if isinstance(value, str) else value
    data = source.results.get("data", {})
    out |= {
        "data": _without_folders(source, data["description"]) if data.get("description") else None,
        "synthetic": bool(data.get("synthetic")),
        "published_counts": data.get("published_counts") or None,
        "split_warnings": list(data.get("split_warnings", [])),
    }
    if source.results.get("stain"):
        out["stain_normalisation"] = _stain(source)
    if source.config:
        out["config_hash"] = config_hash(source.config)
    sessions = source.run.get("sessions") or []
    if sessions:
        last = sessions[-1]
        git = last.get("git") or {}
        commit = git["commit"][:12] if git.get("commit") else None
        out |= {
            "started": sessions[0].get("started"),
            "ended": last.get("ended"),
            "status": last.get("status"),
            "sessions": len(sessions),
            "versions": last.get("versions", {}),
            "devices": last.get("devices", {}),
            "commit": f"{commit} with uncommitted changes" if commit and git.get("dirty") else commit,
        }
    return out


def copy_own_metrics(source: Source, blocks: Mapping[str, Any]) -> list[str]:
    """Copy the figures of metrics of the user's own from results.json, so that a report needs no module of the run.

    Args:
      source: a run, or a table, which has none.
      blocks: split -> block of `results.summarise`; changed in place.

    Returns:
      A sentence per metric, that says what computed it.
    """
    metrics = source.results.get("own_metrics") or {}
    for split, block in blocks.items():
        image = source.results.get("splits", {}).get(split, {}).get("image", {})
        block["image"] |= {name: image[name] for name in metrics if name in image}
    return [
        f"{name.replace('_', ' ')} is a metric of the run's own, {function}; its figures are those of results.json."
        for name, function in metrics.items()
    ]


def damaged_split(source: Source) -> list[str]:
    """Note in a sentence if split.csv is not the split that results.json states."""
    stated = source.results.get("split_hash")
    if source.split is None or not stated:
        return []
    sides = list(zip(source.split["image_id"], source.split["split"], strict=True))
    if stated in (split_hash(field, sides) for field in GROUP_FIELDS):
        return []
    return [
        f"split.csv is not the split of these results: its rows do not hash to {stated}, which results.json states. "
        "It was changed or cut short, so the counts of the split are wrong; restore it from a copy of the run."
    ]


def _stain(source: Source) -> str:
    """How stains were normalised, and on which images that was not possible."""
    splits = source.results.get("splits", {})
    left_alone = {side: block["not_normalised"] for side, block in splits.items() if block.get("not_normalised")}
    counts = ", ".join(f"{side} {count} of {splits[side]['n_images']}" for side, count in left_alone.items())
    described = _without_folders(source, source.results["stain"]["description"])
    return described + (f"; images left as they are for want of tissue: {counts}" if counts else "")


def _without_folders(source: Source, text: str) -> str:
    """Reduce the paths of the machine that trained to the names of their last folder or file."""
    data = source.config.get("data", {})
    paths = (data.get("root", ""), data.get("stain", {}).get("reference", ""))
    for path in (*paths, source.config.get("model", {}).get("pretrained", "")):
        if "/" in path and not path.startswith("hf:"):
            text = text.replace(path, path.rstrip("/").rpartition("/")[2])
    return text


def table_hash(table: pd.DataFrame) -> str:
    """Hash the images, labels and probabilities of a valid table, whatever the order of its rows.

    Returns:
      Sixteen hexadecimal digits.
    """
    columns = [c for c in table.columns if str(c).startswith((predictions.PREFIX, predictions.LABEL_PREFIX))]
    columns = ["image_id", "split", *(c for c in ("label",) if c in table), *columns]
    rows = table.sort_values("image_id")[columns]
    digest = hashlib.sha256(",".join(map(str, columns)).encode())
    for name in columns:
        values = rows[name].to_numpy()
        is_number = values.dtype.kind in "fiu"
        digest.update(values.astype(np.float64).tobytes() if is_number else "\0".join(map(str, values)).encode())
    return digest.hexdigest()[:16]


def differing_facts(first: Source, second: Source) -> list[str]:
    """Note in sentences where two sources differ that should agree."""
    notes = []
    for key, plural in (("protocol", "protocols"), ("split_hash", "splits")):
        pair = [source.results.get(key) for source in (first, second)]
        if None not in pair and pair[0] != pair[1]:
            notes.append(
                f"The {plural} differ: {pair[0]} and {pair[1]}. One model may be tested on images that the other "
                "was trained on."
            )
    return notes


def training_curves(source: Source) -> dict[str, dict[str, list[float]]]:
    """Collect the curves of training: name, such as `train/loss` -> `step` and `value`."""
    curves: dict[str, dict[str, list[float]]] = {}
    for line in source.curves:
        for key, value in line.items():
            side, _, name = key.partition("/")
            if side in ("train", "val") and name in _TRAINING_METRICS and isinstance(value, int | float):
                series = curves.setdefault(key, {"step": [], "value": []})
                series["step"].append(line["step"])
                series["value"].append(float(value))
    for series in curves.values():
        every = -(-len(series["step"]) // _CURVE_POINTS)
        series["step"], series["value"] = series["step"][::every], series["value"][::every]
    return curves


def split_sides(source: Source) -> dict[str, Any]:
    """Count images, patients, cases and labels per side, and patients and cases on several sides.

    The counts are those of split.csv, else those of the table.
    """
    has_split = source.split is not None
    table = source.split if source.split is not None else source.table
    placed = table[table["split"] != ""]
    out: dict[str, Any] = {"of": "split.csv" if has_split else "the table of predictions", "sides": {}, "shared": {}}
    for side, rows in placed.groupby("split", sort=False):
        counts: dict[str, Any] = {"n_images": len(rows)}
        for column in ("patient_id", "case_id", "slide_id"):
            if column in rows and (rows[column] != "").all():
                counts[column] = int(rows[column].nunique())
        counts["labels"] = _label_counts(source, rows, has_split)
        out["sides"][str(side)] = counts
    order = {"train": 0, "val": 1, "test": 2}
    out["sides"] = dict(sorted(out["sides"].items(), key=lambda item: (order.get(item[0], 3), item[0])))
    for column in ("patient_id", "case_id"):
        if column in placed:
            known = placed[placed[column] != ""]
            out["shared"][column] = int((known.groupby(column)["split"].nunique() > 1).sum())
    if has_split and "note" in table:
        out["left_out"] = {str(k): int(v) for k, v in table[table["split"] == ""]["note"].value_counts().items()}
    return out


def _label_counts(source: Source, rows: pd.DataFrame, has_split: bool) -> dict[str, int]:
    if not source.multilabel:
        return {str(k): int(v) for k, v in rows["label"].value_counts().sort_index().items()}
    if has_split:  # split.csv joins the labels of an image by "+"
        labels = np.array([[name in text.split("+") for name in source.classes] for text in rows["label"]])
    else:
        labels, _ = multilabel.arrays(rows, source.classes)
    return dict(zip(source.classes, labels.sum(0).astype(int).tolist(), strict=True))
