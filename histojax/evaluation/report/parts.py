"""Parts of a report beside its figures: facts of the run, patients, worst errors, training, who is on which side."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import predictions, results
from histojax.evaluation.metrics import Array
from histojax.evaluation.report.inputs import Source

FEW_IMAGES = 5  # of a patient: its share of right images says little
_PATIENTS = 1000  # that a report keeps
_HEAD = ("protocol", "protocol_id", "split_hash", "model", "image_size", "pretrained", "checkpoint", "checkpoint_step")
_TRAINING = ("loss", "accuracy", "balanced_accuracy", "gmean", "f1", "mean_average_precision")
_POINTS = 400  # of a training curve


def facts(source: Source) -> dict[str, Any]:
    """What is known of where the predictions come from; None: what is not."""
    out: dict[str, Any] = {"predictions": source.path.name, "predictions_hash": table_hash(source.table)}
    # The folder's own place on a machine is nobody's business but its owner's.
    folder = f"{source.path.resolve()}/"
    for key in _HEAD:
        value = source.results.get(key)
        out[key] = local(source, value.replace(folder, "")) if isinstance(value, str) else value
    data = source.results.get("data", {})
    out |= {
        "data": local(source, data["description"]) if data.get("description") else None,
        "synthetic": bool(data.get("synthetic")),
        "published_counts": data.get("published_counts") or None,
        "split_warnings": list(data.get("split_warnings", [])),
    }
    if source.config:
        out["config_hash"] = hashlib.sha256(json.dumps(source.config, sort_keys=True).encode()).hexdigest()[:16]
    sessions = source.run.get("sessions") or []
    if sessions:
        last = sessions[-1]
        git = last.get("git") or {}
        out |= {
            "started": sessions[0].get("started"),
            "ended": last.get("ended"),
            "status": last.get("status"),
            "sessions": len(sessions),
            "versions": last.get("versions", {}),
            "devices": last.get("devices", {}),
            "commit": f"{git['commit'][:12]}{' and changes' if git.get('dirty') else ''}"
            if git.get("commit")
            else None,
        }
    return out


def local(source: Source, text: str) -> str:
    """A text without the folders of the machine that trained."""
    for path in (source.config.get("data", {}).get("root", ""), source.config.get("model", {}).get("pretrained", "")):
        if "/" in path and not path.startswith("hf:"):
            text = text.replace(path, path.rstrip("/").rpartition("/")[2])
    return text


def table_hash(table: pd.DataFrame) -> str:
    """Sixteen hexadecimal digits of a valid table: of its images, truths and probabilities, whatever their order."""
    columns = [c for c in table.columns if str(c).startswith((predictions.PREFIX, predictions.LABEL_PREFIX))]
    columns = ["image_id", "split", *(c for c in ("label",) if c in table), *columns]
    rows = table.sort_values("image_id")[columns]
    digest = hashlib.sha256(",".join(map(str, columns)).encode())
    for name in columns:
        values = rows[name].to_numpy()
        numbers = values.dtype.kind in "fiu"
        digest.update(values.astype(np.float64).tobytes() if numbers else "\0".join(map(str, values)).encode())
    return digest.hexdigest()[:16]


def differing_facts(first: Source, second: Source) -> list[str]:
    """What makes two sources unlike that ought to be alike, in sentences."""
    out = []
    for key, words in (("protocol", "protocols"), ("split_hash", "splits")):
        pair = [source.results.get(key) for source in (first, second)]
        if None not in pair and pair[0] != pair[1]:
            out.append(f"Other {words}: {pair[0]} and {pair[1]}. What one was trained on the other may be tested on.")
    return out


def right(source: Source, rows: pd.DataFrame, cuts: Mapping[str, float]) -> dict[str, Array]:
    """Named shares of being right, as numbers (n,), nan where an image does not enter; the first is of every image."""
    if source.multilabel:
        there, p = _labels(rows, source.classes)
        same = (p >= [cuts[name] for name in source.classes]) == there
        return {"labels right": same.mean(1), "all labels right": same.all(1).astype(np.float64)}
    true, probabilities = results.arrays(rows, source.classes)
    hit = (probabilities.argmax(1) == true).astype(np.float64)
    out = {"accuracy": hit}
    if source.positive is not None:
        index = source.classes.index(source.positive)
        out["sensitivity"] = np.where(true == index, hit, np.nan)
        out["specificity"] = np.where(true != index, hit, np.nan)
    return out


def groups(source: Source, rows: pd.DataFrame, column: str, shares: Mapping[str, Array]) -> dict[str, Any]:
    """A row a patient or case, the least right first: labels, images, share right, mean probability."""
    name, share = next(iter(shares.items()))
    ids = rows[column].to_numpy().astype(str)
    names, index = np.unique(ids, return_inverse=True)
    counts = np.bincount(index)
    sums = {"right": np.bincount(index, weights=share)}
    if source.multilabel:
        there, _ = _labels(rows, source.classes)
        sums |= {label: np.bincount(index, weights=there[:, i]) for i, label in enumerate(source.classes)}
    elif source.positive is not None:
        sums["probability"] = np.bincount(index, weights=rows[predictions.PREFIX + source.positive].to_numpy())
    labels: dict[str, set[str]] = {}
    if not source.multilabel:
        for one, label in rows[[column, "label"]].drop_duplicates().itertuples(index=False):
            labels.setdefault(str(one), set()).add(str(label))
    table = []
    for i in np.lexsort((names, sums["right"] / counts)):
        if names[i] == "":
            continue
        row: dict[str, Any] = {"id": str(names[i]), "n_images": int(counts[i])}
        row["labels"] = sorted(labels.get(str(names[i]), ()))
        if source.multilabel:
            row["labels"] = [f"{label} {int(sums[label][i])}" for label in source.classes if sums[label][i]]
        row |= {"share_right": float(sums["right"][i] / counts[i]), "few": bool(counts[i] < FEW_IMAGES)}
        if "probability" in sums:
            row["mean_probability"] = float(sums["probability"][i] / counts[i])
        table.append(row)
    return {"share": name, "n": len(table), "n_few": sum(row["few"] for row in table), "rows": table[:_PATIENTS]}


def worst(source: Source, rows: pd.DataFrame, cuts: Mapping[str, float], n: int) -> dict[str, Any]:
    """The errors that the model was surest of, and how many errors there are."""
    if source.multilabel:
        there, p = _labels(rows, source.classes)
        wrong = (p >= [cuts[name] for name in source.classes]) != there
        off = np.where(wrong, np.abs(p - there), -1.0)
        said = off.argmax(1)
        score = off.max(1)
    else:
        true, probabilities = results.arrays(rows, source.classes)
        said = probabilities.argmax(1)
        score = np.where(said != true, 1 - probabilities[np.arange(len(true)), true], -1.0)
    order = np.lexsort((rows["image_id"].to_numpy().astype(str), -score))
    out = []
    for i in order[: min(n, int((score >= 0).sum()))]:
        row = rows.iloc[i]
        name = source.classes[said[i]]
        one: dict[str, Any] = {"image_id": row["image_id"], "patient_id": row["patient_id"]}
        one |= {key: row[key] for key in ("magnification", "subtype", "path") if key in rows and str(row[key])}
        if source.multilabel:
            one["truth"] = f"{name} {'present' if row[predictions.LABEL_PREFIX + name] else 'absent'}"
        else:
            one["truth"] = row["label"]
        one["probability"] = float(row[predictions.PREFIX + name])
        one["said"] = name
        out.append({key: value if isinstance(value, float) else str(value) for key, value in one.items()})
    return {"n_errors": int((score >= 0).sum()), "rows": out}


def coexistence(rows: pd.DataFrame, names: list[str], cuts: Mapping[str, float]) -> dict[str, Any]:
    """In how many images two labels are together, by truth and by prediction, and the commonest sets of labels."""
    there, p = _labels(rows, names)
    said = p >= [cuts[name] for name in names]
    pairs = {key: (x.T.astype(int) @ x.astype(int)).tolist() for key, x in (("true", there), ("predicted", said))}
    sets: dict[str, dict[str, int]] = {}
    for truth, answer in zip(there, said, strict=True):
        true_set, said_set = (
            " + ".join(n for n, x in zip(names, of, strict=True) if x) or "none" for of in (truth, answer)
        )
        for key, name in (("true", true_set), ("predicted", said_set)):
            sets.setdefault(name, {"true": 0, "predicted": 0, "both": 0})[key] += 1
        sets[true_set]["both"] += true_set == said_set
    ordered = sorted(sets.items(), key=lambda item: (-item[1]["true"], -item[1]["predicted"], item[0]))
    return {"pairs": pairs, "sets": [{"labels": name} | counts for name, counts in ordered[:20]], "n_sets": len(sets)}


def training(source: Source) -> dict[str, dict[str, list[float]]]:
    """Curves of training by name, `train/loss` and such: `step` and `value`."""
    out: dict[str, dict[str, list[float]]] = {}
    for line in source.curves:
        for key, value in line.items():
            side, _, name = key.partition("/")
            if side in ("train", "val") and name in _TRAINING and isinstance(value, int | float):
                series = out.setdefault(key, {"step": [], "value": []})
                series["step"].append(line["step"])
                series["value"].append(float(value))
    for series in out.values():
        every = -(-len(series["step"]) // _POINTS)
        series["step"], series["value"] = series["step"][::every], series["value"][::every]
    return out


def sides(source: Source) -> dict[str, Any]:
    """Images, patients, cases and labels of each side, and who stands on several; of split.csv, else of the table."""
    whole = source.split is not None
    table = source.split if source.split is not None else source.table
    placed = table[table["split"] != ""]
    out: dict[str, Any] = {"of": "split.csv" if whole else "the table of predictions", "sides": {}, "shared": {}}
    for side, rows in placed.groupby("split", sort=False):
        one: dict[str, Any] = {"n_images": len(rows)}
        for column in ("patient_id", "case_id", "slide_id"):
            if column in rows and (rows[column] != "").all():
                one[column] = int(rows[column].nunique())
        if source.multilabel and not whole:
            there, _ = _labels(rows, source.classes)
            one["labels"] = dict(zip(source.classes, there.sum(0).astype(int).tolist(), strict=True))
        elif source.multilabel:
            there = np.array([[name in text.split("+") for name in source.classes] for text in rows["label"]])
            one["labels"] = dict(zip(source.classes, there.sum(0).astype(int).tolist(), strict=True))
        else:
            one["labels"] = {str(k): int(v) for k, v in rows["label"].value_counts().sort_index().items()}
        out["sides"][str(side)] = one
    order = {"train": 0, "val": 1, "test": 2}
    out["sides"] = dict(sorted(out["sides"].items(), key=lambda item: (order.get(item[0], 3), item[0])))
    for column in ("patient_id", "case_id"):
        if column in placed:
            known = placed[placed[column] != ""]
            out["shared"][column] = int((known.groupby(column)["split"].nunique() > 1).sum())
    if whole and "note" in table:
        out["left_out"] = {str(k): int(v) for k, v in table[table["split"] == ""]["note"].value_counts().items()}
    return out


def _labels(rows: pd.DataFrame, names: list[str]) -> tuple[Array, Array]:
    """Truth (n, k) as booleans, and probabilities (n, k)."""
    there = rows[[predictions.LABEL_PREFIX + name for name in names]].to_numpy(dtype=bool)
    return there, rows[[predictions.PREFIX + name for name in names]].to_numpy(dtype=np.float64)
