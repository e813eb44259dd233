"""`histojax compare`: several models under one protocol, one after another, and one table of what they scored."""

import csv
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.models.cost import cost
from histojax.training import experiments, loop

_log = logging.getLogger(__name__)
_FIGURES = ("accuracy", "precision", "recall", "f1", "gmean", "iba")


def configs(path: str, overrides: Mapping[str, Any], names: Sequence[str]) -> dict[str, ConfigDict]:
    """The config of each model: the file's own for that variant, with what the command line sets.

    Args:
      path: of the config file, with variants behind a colon if any.
      overrides: fields set on the command line, `a.b` -> value.
      names: the models; empty: `config.compare.models`.

    Raises:
      RunError: a file without models to compare, a model that it does not know.
    """
    module, variant = experiments.load(path)
    file = path.partition(":")[0]
    try:
        known = tuple(module.get_config(variant).compare.models)
        if not known:
            raise RunError(f"{file}: compare.models is empty, so there is nothing to compare")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise RunError(f"--models: {', '.join(unknown)} not among {', '.join(known)} of {file}")
        found = {name: module.get_config(",".join(filter(None, (name, variant)))) for name in names or known}
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
    for config in found.values():
        config.update_from_flattened_dict(dict(overrides))
    return found


def compare(found: Mapping[str, ConfigDict], workdir: pathlib.Path) -> str | None:
    """Trains what is not trained yet, each model in a folder of its own, and writes `comparison.json` and `.csv`.

    Returns:
      The table to print; None if it was interrupted: the same command then goes on.

    Raises:
      RunError: a model cannot be trained; the table of those before it is written.
    """
    rows: list[dict[str, Any]] = []
    for number, (name, config) in enumerate(found.items(), 1):
        folder = workdir / name
        loop.make_root_absolute(config)
        if finished(folder, config):
            _log.info(f"{name} ({number} of {len(found)}): done before, in {folder}")
        else:
            _log.info(f"{name} ({number} of {len(found)})")
            if not loop.train_and_evaluate(config, folder):
                return None
            jax.clear_caches()  # the next model is another program: nothing of this one is used again
        rows.append(_row(name, config, folder))
        _write(rows, workdir)
    return table(rows)


def finished(folder: pathlib.Path, config: ConfigDict) -> bool:
    """Whether a work directory holds the whole run of this config, and its results."""
    try:
        same = json.loads((folder / "config.json").read_text()) == json.loads(config.to_json())
        return same and (folder / "results.json").is_file() and _sessions(folder)[-1]["status"] == "finished"
    except (OSError, json.JSONDecodeError, KeyError, IndexError):
        return False


def _sessions(folder: pathlib.Path) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())["sessions"]
    return sessions


def _row(name: str, config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    block = results["splits"]["test"]
    size = config.data.image_size
    parameters, flops = cost(name, len(block["classes"]), size, config.model.options.to_dict())
    speeds = [
        line["train/images_per_second"]
        for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if "train/images_per_second" in line
    ]
    return {
        "model": name,
        "protocol": results["protocol"],
        "data": results["data"]["description"],
        "pretrained": results["pretrained"],
        "split_hash": results["split_hash"],
        "n_images": block["n_images"],
        "n_patients": block["n_patients"],
        **{figure: block["image"][figure] for figure in _FIGURES},
        "patient_recognition_rate": block.get("patient", {}).get("recognition_rate"),
        "parameters": parameters,
        "image_size": size,
        "flops": flops,
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "reported_by": config.paper.source,
        "reported_accuracy": config.paper.accuracy.get(name, {}).get(config.data.magnification),
    }


def _write(rows: Sequence[Mapping[str, Any]], workdir: pathlib.Path) -> None:
    write_json(workdir / "comparison.json", list(rows))
    with (
        atomic_write(workdir / "comparison.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(rows[0])
        for row in rows:
            values = (value["value"] if isinstance(value, Mapping) else value for value in row.values())
            writer.writerow(["" if value is None else value for value in values])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text: what they have in common, figures with the interval of the accuracy, costs, the paper's."""
    common = {key: {str(row[key]) for row in rows} for key in ("protocol", "data", "pretrained", "split_hash")}
    lines = [f"{key:<12}{'; '.join(sorted(values))}" for key, values in common.items()]
    lines.append(
        f"{'test':<12}{rows[0]['n_images']} images, {rows[0]['n_patients']} patients; 95 % intervals over patients"
    )
    header = [
        "model",
        "accuracy",
        "",
        "prec.",
        "recall",
        "F1",
        "GMean",
        "IBA",
        "patients",
        "param. M",
        "GFLOP",
        "img/s",
    ]
    header.append("reported")
    body = [header]
    for row in rows:
        accuracy = row["accuracy"]
        low, high = accuracy["low"], accuracy["high"]
        body.append(
            [
                row["model"],
                _number(accuracy["value"]),
                "" if low is None else f"[{low:.3f}, {high:.3f}]",
                *(_number(row[name]["value"]) for name in _FIGURES[1:]),
                _number((row["patient_recognition_rate"] or {}).get("value")),
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['flops'] / 1e9:.2f}",
                "" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}",
                _number(row["reported_accuracy"], "-"),
            ]
        )
    widths = [max(len(line[i]) for line in body) for i in range(len(header))]
    lines += [
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in body),
    ]
    return "\n".join(lines)


def _number(value: float | None, missing: str = "nan") -> str:
    return missing if value is None else f"{value:.3f}"
