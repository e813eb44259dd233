"""The work directory of a run: it belongs to one config, which its checkpoints hold."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.core.settings import diff_settings
from histojax.training import checkpoint, default_config

_log = logging.getLogger(__name__)
# Fields that change neither what is learned nor the data it is learned from (the split's hash guards the data; other
# fields name what the plugins register).
_FREE_FIELDS = {"data.root", "data.prepared_dir", "data.mpp", "data.threads", "data.workers", "data.on_bad_record"}
_FREE_FIELDS |= {"plugins", "data.cache", "data.cache_dir", "data.synthetic"}
_FREE_FIELDS |= {"train.log_every", "train.watchdog", "train.trackers"}
# Fields that set when a run ends. Raising one of them continues a finished run.
_END_FIELDS = {"train.epochs", "train.early_stopping"}
_FREE_GROUPS = ("checkpoint.", "compare.", "evaluation.", "paper.", "sharding.")
_OPEN_GROUPS = ("model.options.",)  # their fields depend on other fields


def read_saved(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Read what the newest checkpoint of a work directory holds besides arrays; None if there is no checkpoint.

    `config.json` and `split.csv` are not read: they are copies for the user and are rewritten at each start.

    Raises:
      CheckpointError: the checkpoint is damaged; the message names the file.
    """
    for name in (checkpoint.LAST, checkpoint.BEST):
        folder = checkpoint.series(workdir, name)
        if steps := checkpoint.complete_steps(folder):
            return checkpoint.read_meta(folder / str(steps[-1]))
    return None


def check_config(workdir: pathlib.Path, saved: Mapping[str, Any], config: ConfigDict) -> None:
    """Verify that a checkpoint belongs to this config.

    A field that did not exist when the checkpoint was saved counts as having its default.

    Args:
      workdir: the work directory.
      saved: the config in its checkpoint.
      config: the config of the run that is to resume.

    Raises:
      RunError: the configs differ in what is learned; the message names every field that differs.
    """
    before, now = flat(default_config.with_defaults(saved)), flat(json.loads(config.to_json()))
    differing = []
    for key, line in diff_settings(before, now).items():
        if key in _FREE_FIELDS | _END_FIELDS or key.startswith(_FREE_GROUPS):
            continue
        if key not in now and not key.startswith(_OPEN_GROUPS):
            _log.warning("%s: the field %s=%r of its config no longer exists; ignoring it", workdir, key, before[key])
            continue
        differing.append(line)
    if differing:
        lines = [f"{workdir} belongs to a run with another config:", *differing]
        raise RunError("\n".join([*lines, "Use that config, or choose a new --workdir."]))


def check_end(workdir: pathlib.Path, saved: Mapping[str, Any], config: ConfigDict, total_steps: int) -> bool:
    """Verify that a resumed run does not end before its newest checkpoint.

    Args:
      workdir: the work directory.
      saved: what its newest checkpoint holds.
      config: the config of the run that is to resume.
      total_steps: its steps.

    Returns:
      Whether `train.epochs` has changed, so that the updates after the checkpoint differ from those planned before.

    Raises:
      RunError: `train.epochs` was lowered too far.
    """
    before, now = saved["config"]["train"]["epochs"], config.train.epochs
    if before == now:
        return False
    if saved["step"] > total_steps:
        raise RunError(
            f"train.epochs={now} ends at step {total_steps}, but the run in {workdir} has reached step "
            f"{saved['step']}: raise train.epochs, or choose a new --workdir"
        )
    schedule = f"; the cosine schedule is now that of {now} epochs" if config.optimizer.schedule == "cosine" else ""
    _log.info("train.epochs: %d until step %d, now %d%s", before, saved["step"], now, schedule)
    return True


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by field, such as `train.epochs`.

    Args:
      tree: the config as JSON values, by group.
      prefix: of the fields.
    """
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return fields
