"""`histojax compare`: train several models under one protocol, one after another, and tabulate their results."""

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.core.suggestions import did_you_mean
from histojax.core.text_table import text_table
from histojax.evaluation import formatting
from histojax.models.cost import cost
from histojax.studies.study_runs import check_data, check_same, read_results, train
from histojax.training import experiments, trainer

_METRICS = ("accuracy", "precision", "recall", "f1", "gmean", "iba")
_HEADER = (
    "model", "accuracy", "", "prec.", "recall", "F1", "GMean", "IBA", "patients", "param. M", "GFLOP", "img/s",
    "reported",
)  # fmt: skip


def configs(path: str, overrides: Mapping[str, Any], names: Sequence[str]) -> dict[str, ConfigDict]:
    """Build the config of each model: the config file's variant for it, with the fields of the command line.

    Args:
      path: of the config file, with its variants after a colon, if any.
      overrides: fields set on the command line, `a.b` -> value.
      names: the models; empty: `config.compare.models`.

    Raises:
      RunError: a file without models to compare, or a model that it does not know.
    """
    module, variant = experiments.load(path)
    file = path.partition(":")[0]
    try:
        known = tuple(module.get_config(variant).compare.models)
        if not known:
            raise RunError(f"{file}: compare.models is empty, so there is nothing to compare")
        unknown = [name for name in names if name not in known]
        if unknown:
            hint = did_you_mean(unknown[0], known)
            raise RunError(f"--models: {', '.join(unknown)} not among {', '.join(known)} of {file}{hint}")
        by_model = {name: module.get_config(",".join(filter(None, (name, variant)))) for name in names or known}
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
    for config in by_model.values():
        config.update_from_flattened_dict(dict(overrides))
    return by_model


def compare(by_model: Mapping[str, ConfigDict], workdir: pathlib.Path) -> str | None:
    """Train the models that are not finished, each in its own folder; write `comparison.json` and `.csv`.

    Args:
      by_model: model -> its config, as `configs` returns them.
      workdir: folder of all runs.

    Returns:
      The table to print; None if the study was interrupted, in which case the same command resumes it.

    Raises:
      RunError: a model cannot be trained, or finished models were trained on other data. The table of the models before
        it is written.
    """
    rows: list[dict[str, Any]] = []
    for config in by_model.values():
        trainer.make_paths_absolute(config)
    check_data({workdir / name: config for name, config in by_model.items()})
    done: dict[pathlib.Path, dict[str, Any]] = {}
    for number, (name, config) in enumerate(by_model.items(), 1):
        folder = workdir / name
        if not train(config, folder, f"{name} ({number} of {len(by_model)})"):
            return None
        done[folder] = read_results(folder)
        check_same(done, "data", "split")
        rows.append(_row(name, config, folder, done[folder]))
        _write(rows, workdir)
    return table(rows)


def _row(name: str, config: ConfigDict, folder: pathlib.Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the results and costs of a finished run."""
    block = results["splits"]["test"]
    size = config.data.image_size
    parameters, flops = cost(name, len(block["classes"]), size, config.model.options.to_dict())
    return {
        "model": name,
        "protocol": results["protocol"],
        "data": results["data"]["description"],
        "pretrained": results["pretrained"],
        "split_hash": results["split_hash"],
        "n_images": block["n_images"],
        "n_patients": block["n_patients"],
        **{metric: block["image"][metric] for metric in _METRICS},
        "patient_recognition_rate": block.get("patient", {}).get("recognition_rate"),
        "parameters": parameters,
        "image_size": size,
        "flops": flops,
        "images_per_second": _median_speed(folder),
        "reported_by": config.paper.source,
        "reported_accuracy": config.paper.accuracy.get(name, {}).get(config.data.magnification),
    }


def _median_speed(folder: pathlib.Path) -> float | None:
    """Read the median training speed of a run, in images per second; None if none was logged."""
    key = "train/images_per_second"
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    speeds: list[float] = [line[key] for line in lines if key in line]
    return sorted(speeds)[len(speeds) // 2] if speeds else None


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
    """Format the rows as text: what the runs share, then metrics, costs and the paper's accuracy per model."""
    shared = {key: {str(row[key]) for row in rows} for key in ("protocol", "data", "pretrained", "split_hash")}
    lines = [f"{key:<12}{'; '.join(sorted(values))}" for key, values in shared.items()]
    lines.append(
        f"{'test':<12}{rows[0]['n_images']} images, {rows[0]['n_patients']} patients; 95 % intervals over patients"
    )
    return "\n".join([*lines, "", *text_table([_HEADER, *map(_cells, rows)])])


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Format one row of the table, in the order of `_HEADER`."""
    speed = row["images_per_second"]
    return [
        row["model"],
        formatting.number(row["accuracy"]["value"]),
        formatting.interval(row["accuracy"]),
        *(formatting.number(row[metric]["value"]) for metric in _METRICS[1:]),
        formatting.number((row["patient_recognition_rate"] or {}).get("value")),
        formatting.number(row["parameters"] / 1e6, digits=1),
        formatting.number(row["flops"] / 1e9, digits=2),
        formatting.number(speed, digits=1, undefined=""),
        formatting.number(row["reported_accuracy"], undefined="-"),
    ]
