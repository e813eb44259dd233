"""`histojax protocols`: train one model under several split protocols, k folds each, and tabulate the results."""

import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from data_pipelines import protocols
from data_pipelines.breakhis import published
from data_pipelines.official_folds import write_fold
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.core.positive import positive_by_name
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions, results
from histojax.studies import transfer
from histojax.studies.protocols_table import table
from histojax.studies.study_runs import check_data, check_same, read_results, train
from histojax.training import build, trainer

DEFAULT = ("image_with_copies", "image_deduplicated", "patient_deduplicated", "case_deduplicated")
_OFFICIAL_FOLDS = range(1, 6)
# Metric of the table -> its level and name in results.json.
_METRICS = {
    "accuracy": ("image", "accuracy"),
    "balanced_accuracy": ("image", "balanced_accuracy"),
    "gmean": ("image", "gmean"),
    "patient_recognition_rate": ("patient", "recognition_rate"),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row of the table: the runs of one protocol at one magnification.

    Attributes:
      name: of the protocol, as the user named it.
      kind: of the protocol, such as `case`.
      runs: folder of each run below the work directory -> its config, in the order of the folds.
    """

    name: str
    kind: str
    runs: dict[str, ConfigDict]

    @property
    def config(self) -> ConfigDict:
        """Config of the first run; the others differ only in their fold."""
        return next(iter(self.runs.values()))


def plans(config: ConfigDict, names: Sequence[str], magnifications: Sequence[str], folds: int) -> list[Plan]:
    """Plan the rows of the table, protocol by protocol.

    Args:
      config: of the model.
      names: of protocols (`data_pipelines.protocols`).
      magnifications: of BreakHis; empty: the config's. A protocol defined at one magnification runs at that one.
      folds: of the cross-validation; 0: one hold-out. The official folds are always five; a given split is one run.

    Raises:
      RunError: a meaningless number of folds, or a task with several labels per image.
      DataError: an unknown protocol.
    """
    if config.data.task == "multilabel":
        raise RunError(
            "histojax protocols needs one class per image, but data.task=multilabel allows several labels per image"
        )
    if folds < 0 or folds == 1:
        raise RunError(f"--folds={folds}: give 2 or more, or 0 for one hold-out")
    planned = {}
    for name in dict.fromkeys(names):
        protocols.check_name(name)
        registered = protocols.REGISTRY.get(name)
        kind = registered.kind if registered else name
        own = registered.magnification if registered else ""
        task = registered.task if registered and registered.task else config.data.task
        for magnification in [own] if own else magnifications or [config.data.magnification]:
            runs = {}
            for fold in _folds(kind, folds):
                run = config.copy_and_resolve_references()
                run.data.magnification = magnification
                run.data.task = task
                run.data.split.update(protocol=name, fold=fold, kfolds=folds if _cross_validates(kind) else 0)
                build.split_spec(run)
                trainer.make_paths_absolute(run)
                runs[f"{name}-{magnification}/fold_{fold}"] = run
            planned[name, magnification] = Plan(name, kind, runs)
    return list(planned.values())


def _cross_validates(kind: str) -> bool:
    """Return whether a protocol draws its folds itself; given splits, official folds and lists do not."""
    return kind not in ("given", "folds", "listed")


def _folds(kind: str, folds: int) -> Sequence[int]:
    if kind == "folds":
        return _OFFICIAL_FOLDS
    return range(folds) if folds and _cross_validates(kind) else range(1)


def measure(planned: Sequence[Plan], workdir: pathlib.Path, with_transfer: bool = False) -> str | None:
    """Train the folds that are not finished, each in its own folder; write `protocols.json` and `.csv`.

    Args:
      planned: rows of the table, as `plans` returns them.
      workdir: folder of all runs.
      with_transfer: also test the case-disjoint models at the other magnifications.

    Returns:
      The table to print; None if the study was interrupted, in which case the same command resumes it.

    Raises:
      RunError, DataError: a fold cannot be trained, finished folds were trained on other data, or the folds of a
        cross-validation do not test each image once. The table of the folds before it is written.
    """
    check_data({workdir / name: config for plan in planned for name, config in plan.runs.items()})
    rows: list[dict[str, Any]] = []
    for plan in planned:
        done: list[pathlib.Path] = []
        rows.append({})
        for number, (name, config) in enumerate(plan.runs.items(), 1):
            if not train(config, workdir / name, f"{name} ({number} of {len(plan.runs)})"):
                return None
            done.append(workdir / name)
            rows[-1] = _row(plan, done, workdir)
            _write(rows, None, workdir)
    matrix = None
    if with_transfer:
        matrix = transfer.matrix([plan.runs for plan in planned if plan.kind == "case"], workdir)
        _write(rows, matrix, workdir)
    return table(rows) + (transfer.table(matrix) if matrix else "")


def write_folds(planned: Sequence[Plan], folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the folds of one protocol, over all its magnifications, as `dsfold1.txt` … for other programs.

    Raises:
      RunError: several protocols.
      DataError: images that are not from BreakHis.
    """
    if len({plan.name for plan in planned}) != 1:
        raise RunError("--write_folds writes one protocol; name it, such as --protocols=case_deduplicated")
    paths = []
    for number, same_fold in enumerate(zip(*(plan.runs.values() for plan in planned), strict=True), 1):
        sides: dict[str, str] = {}
        for config in same_fold:
            split = open_dataset(config.data).split(build.split_spec(config))
            sides |= {row.image_id: row.side for row in split.rows}
        paths.append(write_fold(folder, number, sides))
    return paths


def _row(plan: Plan, folders: Sequence[pathlib.Path], workdir: pathlib.Path) -> dict[str, Any]:
    """Summarise the finished folds of a plan: each metric per fold, and over all test images pooled."""
    config = plan.config
    folds = [read_results(folder) for folder in folders]
    check_same(dict(zip(folders, folds, strict=True)), "data")
    tables = [predictions.read(folder / "predictions") for folder in folders]
    split_warnings = dict.fromkeys(warning for fold in folds for warning in fold["data"]["split_warnings"])
    if config.data.split.kfolds:
        _check_sides(plan, folds[0]["data"], tables)
    elif repeated := _count_repeated(tables):
        split_warnings[f"{repeated} images are tested by several folds, and count once for each of them"] = None
    pooled = predictions.pool_folds(tables)
    block = results.summarise(
        pooled,
        positive=positive_by_name(predictions.class_names(pooled)),
        n_resamples=config.evaluation.resamples,
        seed=config.seed,
    )["test"]
    reported: tuple[published.Reported, ...] = ()
    if config.data.pipeline == "breakhis" and not folds[0]["data"]["synthetic"]:
        reported = published.beside(plan.kind, config.data.task, config.data.magnification)
    return {
        "protocol": plan.name,
        "protocol_id": folds[0]["protocol_id"],
        "in_words": [fold["protocol"] for fold in folds],
        "magnification": config.data.magnification,
        "task": config.data.task,
        "classes": block["classes"],
        "model": folds[0]["model"],
        "pretrained": folds[0]["pretrained"],
        "data": folds[0]["data"]["description"],
        "n_folds": len(folders),
        "n_folds_wanted": len(plan.runs),
        "n_images": block["n_images"],
        "n_patients": block["n_patients"],
        "resampled": block["resampled"],
        "figures": _metrics_over_folds(folds, block),
        "majority_baseline": block["majority_baseline"],
        "published": [dataclasses.asdict(one) for one in reported],
        "split_hashes": [fold["split_hash"] for fold in folds],
        "runs": [str(folder.relative_to(workdir)) for folder in folders],
        "warnings": [*split_warnings, *block["warnings"]],
    }


def _check_sides(plan: Plan, data: Mapping[str, Any], tables: Sequence[pd.DataFrame]) -> None:
    """Verify that the folds of a cross-validation test no image twice and, once all are done, every image.

    Raises:
      RunError: they do not.
    """
    repeated, tested = _count_repeated(tables), sum(int((table["split"] == "test").sum()) for table in tables)
    missing = data["n_images"] - sum(data["left_out"].values()) - (tested - repeated)
    complete = len(tables) == len(plan.runs)
    if repeated or (missing and complete):
        text = f"{repeated} images are tested by several folds" + (f", {missing} by none" if complete else "")
        raise RunError(f"{plan.name}: {text}; delete {', '.join(plan.runs)} below --workdir and train them again")


def _count_repeated(tables: Sequence[pd.DataFrame]) -> int:
    """Return the number of test rows whose image an earlier fold tests."""
    return int(pd.concat([table["image_id"][table["split"] == "test"] for table in tables]).duplicated().sum())


def _metrics_over_folds(folds: Sequence[Mapping[str, Any]], block: Mapping[str, Any]) -> dict[str, Any]:
    """Compute mean and sd over folds, next to the pooled estimate. Without known patients their metric is left out."""
    out = {}
    for name, (level, key) in _METRICS.items():
        if key not in block.get(level, {}):
            continue
        values = [fold["splits"]["test"][level][key]["value"] for fold in folds]
        defined = [value for value in values if value is not None]
        out[name] = {
            "mean": statistics.fmean(defined) if defined else None,
            "sd": statistics.stdev(defined) if len(defined) > 1 else None,
            "folds": values,
            "pooled": block[level][key],
        }
    return out


def _write(rows: Sequence[Mapping[str, Any]], matrix: Mapping[str, Any] | None, workdir: pathlib.Path) -> None:
    write_json(workdir / "protocols.json", {"rows": list(rows), "transfer": matrix})
    facts = ("protocol", "protocol_id", "magnification", "task", "model", "n_folds", "n_images", "n_patients")
    parts = ("mean", "sd", "pooled", "low", "high")
    with (
        atomic_write(workdir / "protocols.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*facts, *(f"{name}_{part}" for name in _METRICS for part in parts), "published"])
        for row in rows:
            cells = [row[key] for key in facts]
            for name in _METRICS:
                figure = row["figures"].get(name, {"mean": None, "sd": None, "pooled": {}})
                cells += [figure["mean"], figure["sd"]]
                cells += [figure["pooled"].get(key) for key in ("value", "low", "high")]
            reported = (
                f"{o['metric']} {o['value']} ({o['model']}; {o['source']}; {o['protocol']})" for o in row["published"]
            )
            writer.writerow(["" if cell is None else cell for cell in (*cells, "; ".join(reported))])
