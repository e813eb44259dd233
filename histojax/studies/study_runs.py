"""The runs of a study: they are trained once, and stand in one table only if they are about the same data."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from histojax.core import plugins
from histojax.core.errors import RunError
from histojax.core.files import read_json
from histojax.data.sources import Dataset, open_dataset
from histojax.training import build, loop

_log = logging.getLogger(__name__)
_REMEDY = (
    "Delete these folders to train them again, choose a new --workdir, or set --config.data.root to the images that "
    "they were trained on."
)


def finished(folder: pathlib.Path, config: ConfigDict) -> bool:
    """Return whether a work directory holds a finished run of this config, with its results."""
    saved, run, found = (read_json(folder / name) for name in ("config.json", "run.json", "results.json"))
    if saved is None or run is None or found is None:
        return False  # missing, or damaged by a power cut: the run writes them again
    sessions = run.get("sessions") or [{}]
    return saved == json.loads(config.to_json()) and sessions[-1].get("status") == "finished"


def train(config: ConfigDict, folder: pathlib.Path, title: str, decision_rule: Mapping[str, Any] | None = None) -> bool:
    """Train and evaluate one run of a study, unless it is finished.

    Args:
      config: of the run.
      folder: its work directory.
      title: what the log calls it.
      decision_rule: as for `loop.train_and_evaluate`.

    Returns:
      Whether it is finished; False if it was interrupted.
    """
    if finished(folder, config):
        _log.info(f"{title}: already finished")
        return True
    _log.info(title)
    complete = loop.train_and_evaluate(config, folder, decision_rule=decision_rule)
    if complete:
        jax.clear_caches()  # the next run takes its program from the compilation cache, on disk
    return complete


def read_results(folder: pathlib.Path) -> dict[str, Any]:
    """Read the results of a finished run."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def check_data(runs: Mapping[pathlib.Path, ConfigDict]) -> None:
    """Verify that all runs of a study have a split, and the finished ones the data that their config now describes.

    Call it before any run is trained, so that a table never mixes runs on different data.

    Args:
      runs: work directory -> config.

    Raises:
      RunError: data or split of finished runs have changed since; the message names each folder. Or a plugin cannot be
        imported.
      DataError: the data cannot be opened or divided; the message names the folder.
    """
    opened: dict[str, Dataset] = {}
    changed = []
    for folder, config in runs.items():
        plugins.load(config.plugins)  # a dataset may be a source of the user's own
        key = json.dumps({k: v for k, v in json.loads(config.to_json())["data"].items() if k != "split"})
        if key not in opened:
            opened[key] = open_dataset(config.data)
        dataset = opened[key]
        try:
            split = dataset.split(build.split_spec(config))
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
        if not finished(folder, config):
            continue
        now = {"split": split.hash, "data": dataset.hash}
        then = _hashes(read_results(folder))
        differing = [f"{name} {then[name]}, now {now[name]}" for name in now if then[name] not in (None, now[name])]
        if differing:
            changed.append(f"  {folder}: {'; '.join(differing)}")
    if changed:
        raise RunError("\n".join(["These finished runs were trained on other data:", *changed, _REMEDY]))


def check_same(runs: Mapping[pathlib.Path, Mapping[str, Any]], *keys: str) -> None:
    """Verify that the results of several runs, which stand in one table, are about the same data.

    Args:
      runs: work directory -> its results.
      *keys: `data`, `split` or both.

    Raises:
      RunError: they differ; the message names each folder.
    """
    stated = {folder: _hashes(results) for folder, results in runs.items()}
    for key in keys:
        if len({hashes[key] for hashes in stated.values()} - {None}) > 1:
            lines = [f"  {folder}: {key} {hashes[key]}" for folder, hashes in stated.items()]
            raise RunError("\n".join(["These runs belong to one table, but their data differ:", *lines, _REMEDY]))


def _hashes(results: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the hashes of split and data; results of earlier versions do not state that of the data."""
    return {"split": results["split_hash"], "data": results["data"].get("hash")}
