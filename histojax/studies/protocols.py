"""`histojax protocols`: one model under several protocols, k folds each, and one table of what each makes of it."""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import pandas as pd
from ml_collections import ConfigDict

from data_pipelines import protocols
from data_pipelines.breakhis import published
from data_pipelines.official_folds import write_fold
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions, results
from histojax.studies import compare, transfer
from histojax.studies.protocols_table import table
from histojax.training import build, loop
from histojax.training.evaluate import POSITIVE

_log = logging.getLogger(__name__)
DEFAULT = ("image_with_copies", "image_deduplicated", "patient_deduplicated", "case_deduplicated")
_OFFICIAL_FOLDS = range(1, 6)
_WHERE = {
    "accuracy": ("image", "accuracy"),
    "balanced_accuracy": ("image", "balanced_accuracy"),
    "gmean": ("image", "gmean"),
    "patient_recognition_rate": ("patient", "recognition_rate"),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row of the table: the runs of one protocol at one magnification.

    Attributes:
      name: of the protocol, as it was asked for.
      kind: of the protocol, such as `case`.
      runs: folder of each run below the work directory -> its config, in the order of the folds.
    """

    name: str
    kind: str
    runs: dict[str, ConfigDict]

    @property
    def config(self) -> ConfigDict:
        """Of the first run: the others differ in their fold alone."""
        return next(iter(self.runs.values()))


def plans(config: ConfigDict, names: Sequence[str], magnifications: Sequence[str], folds: int) -> list[Plan]:
    """The rows that are asked for, protocol by protocol.

    Args:
      config: of the one model.
      names: of protocols (`data_pipelines.protocols`).
      magnifications: of BreakHis; empty: the config's. A protocol that is of one magnification is run at that.
      folds: of cross-validation; 0: one hold-out. The official folds are five, of a given split there is one.

    Raises:
      RunError, DataError: an unknown protocol, a number of folds that means nothing, several labels an image.
    """
    if config.data.task == "multilabel":
        raise RunError("histojax protocols measures one class an image: data.task=multilabel has several labels")
    if folds < 0 or folds == 1:
        raise RunError(f"--folds={folds}: give 2 or more, or 0 for one hold-out")
    found = {}
    for name in dict.fromkeys(names):
        protocols.check_name(name)
        registered = protocols.REGISTRY.get(name)
        kind = registered.kind if registered else name
        own = registered.magnification if registered else ""
        for magnification in [own] if own else magnifications or [config.data.magnification]:
            runs = {}
            for fold in _folds(kind, folds):
                one = config.copy_and_resolve_references()
                one.data.magnification = magnification
                one.data.task = registered.task if registered and registered.task else one.data.task
                one.data.split.update(protocol=name, fold=fold, kfolds=folds if _crosses(kind) else 0)
                build.split_spec(one)
                loop.make_root_absolute(one)
                runs[f"{name}-{magnification}/fold_{fold}"] = one
            found[name, magnification] = Plan(name, kind, runs)
    return list(found.values())


def measure(found: Sequence[Plan], workdir: pathlib.Path, with_transfer: bool = False) -> str | None:
    """Trains what is not trained yet, each fold in a folder of its own; writes `protocols.json` and `.csv`.

    Args:
      found: what is asked for.
      workdir: of all.
      with_transfer: whether the case-disjoint models are tested at the other magnifications, too.

    Returns:
      The table to print; None if it was interrupted: the same command then goes on.

    Raises:
      RunError, DataError: a fold cannot be trained; the table of those before it is written.
    """
    rows: list[dict[str, Any]] = []
    for plan in found:
        done: list[pathlib.Path] = []
        rows.append({})
        for number, (name, config) in enumerate(plan.runs.items(), 1):
            folder = workdir / name
            if compare.finished(folder, config):
                _log.info(f"{name} ({number} of {len(plan.runs)}): done before")
            else:
                _log.info(f"{name} ({number} of {len(plan.runs)})")
                with contextlib.redirect_stdout(io.StringIO()):  # a run's own table is in its results.json
                    finished = loop.train_and_evaluate(config, folder)
                if not finished:
                    return None
                jax.clear_caches()  # each fold is a program of its own
            done.append(folder)
            rows[-1] = _row(plan, done, workdir)
            _write(rows, None, workdir)
    matrix = None
    if with_transfer:
        matrix = transfer.matrix([plan.runs for plan in found if plan.kind == "case"], workdir)
        _write(rows, matrix, workdir)
    return table(rows) + (transfer.table(matrix) if matrix else "")


def write_folds(found: Sequence[Plan], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the folds of one protocol, over all its magnifications, as `dsfold1.txt` … for other programs.

    Raises:
      RunError, DataError: several protocols, images that are not BreakHis's.
    """
    if len({plan.name for plan in found}) != 1:
        raise RunError("--write_folds writes one protocol: name it with --protocols=case_deduplicated, say")
    paths = []
    for number, same_fold in enumerate(zip(*(plan.runs.values() for plan in found), strict=True), 1):
        sides: dict[str, str] = {}
        for config in same_fold:
            split = open_dataset(config.data).split(build.split_spec(config))
            sides |= {row.image_id: row.side for row in split.rows}
        paths.append(write_fold(folder, number, sides))
    return paths


def pool(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The test rows of several folds as one table; an image that several folds test is as many rows.

    A bootstrap over patients draws all rows of a patient together, of whatever folds.
    """
    whole = pd.concat([t[t["split"] == "test"] for t in tables], keys=range(len(tables)), names=["fold", "row"])
    whole = whole.reset_index("fold").reset_index(drop=True)
    if whole["image_id"].duplicated().any():
        whole["image_id"] = "fold " + whole["fold"].astype(str) + ": " + whole["image_id"]
    return whole.drop(columns="fold")


def _crosses(kind: str) -> bool:
    return kind not in ("given", "folds", "listed")


def _folds(kind: str, folds: int) -> Sequence[int]:
    if kind == "folds":
        return _OFFICIAL_FOLDS
    return range(folds) if folds and _crosses(kind) else range(1)


def _row(plan: Plan, folders: Sequence[pathlib.Path], workdir: pathlib.Path) -> dict[str, Any]:
    """What the finished folds of a plan say: each figure of each fold, and of all their test images together."""
    config = plan.config
    told = [json.loads((folder / "results.json").read_text()) for folder in folders]
    pooled = pool([predictions.read(folder / "predictions") for folder in folders])
    classes = predictions.class_names(pooled)
    block = results.summarise(
        pooled,
        positive=POSITIVE if POSITIVE in classes else None,
        n_resamples=config.evaluation.resamples,
        seed=config.seed,
    )["test"]
    figures = {}
    for name, (level, key) in _WHERE.items():
        if key not in block.get(level, {}):
            continue  # patients are not known
        each = [one["splits"]["test"][level][key]["value"] for one in told]
        defined = [value for value in each if value is not None]
        figures[name] = {
            "mean": statistics.fmean(defined) if defined else None,
            "sd": statistics.stdev(defined) if len(defined) > 1 else None,
            "folds": each,
            "pooled": block[level][key],
        }
    reported: tuple[published.Reported, ...] = ()
    if config.data.pipeline == "breakhis" and not told[0]["data"]["synthetic"]:
        reported = published.beside(plan.kind, config.data.task, config.data.magnification)
    return {
        "protocol": plan.name,
        "protocol_id": told[0]["protocol_id"],
        "in_words": [one["protocol"] for one in told],
        "magnification": config.data.magnification,
        "task": config.data.task,
        "classes": block["classes"],
        "model": told[0]["model"],
        "pretrained": told[0]["pretrained"],
        "data": told[0]["data"]["description"],
        "n_folds": len(folders),
        "n_folds_wanted": len(plan.runs),
        "n_images": block["n_images"],
        "n_patients": block["n_patients"],
        "resampled": block["resampled"],
        "figures": figures,
        "majority_baseline": block["majority_baseline"],
        "published": [dataclasses.asdict(one) for one in reported],
        "split_hashes": [one["split_hash"] for one in told],
        "runs": [str(folder.relative_to(workdir)) for folder in folders],
        "warnings": [*dict.fromkeys(w for one in told for w in one["data"]["split_warnings"]), *block["warnings"]],
    }


def _write(rows: Sequence[Mapping[str, Any]], matrix: Mapping[str, Any] | None, workdir: pathlib.Path) -> None:
    write_json(workdir / "protocols.json", {"rows": list(rows), "transfer": matrix})
    plain = ("protocol", "protocol_id", "magnification", "task", "model", "n_folds", "n_images", "n_patients")
    parts = ("mean", "sd", "pooled", "low", "high")
    with (
        atomic_write(workdir / "protocols.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*plain, *(f"{name}_{part}" for name in _WHERE for part in parts), "published"])
        for row in rows:
            cells = [row[key] for key in plain]
            for name in _WHERE:
                figure = row["figures"].get(name, {"mean": None, "sd": None, "pooled": {}})
                cells += [figure["mean"], figure["sd"]]
                cells += [figure["pooled"].get(key) for key in ("value", "low", "high")]
            told = (
                f"{o['metric']} {o['value']} ({o['model']}; {o['source']}; {o['protocol']})" for o in row["published"]
            )
            writer.writerow(["" if cell is None else cell for cell in (*cells, "; ".join(told))])
