"""Trackers: services that show the curves and results of many runs. Weights & Biases and MLflow, or one's own."""

import dataclasses
import logging
import os
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from histojax.core.plugins import Registry

_log = logging.getLogger(__name__)
FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"
_MLFLOW_STATUS = {FINISHED: "FINISHED", INTERRUPTED: "KILLED", FAILED: "FAILED"}
_MLFLOW_BATCH = 100  # parameters that one request may hold


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns about a run.

    Attributes:
      workdir: its work directory.
      name: the last two folders of the work directory, such as `runs/dala_100x`.
      config: field -> value, such as `train.epochs` -> 50.
      id: what the tracker called this run in an earlier session; empty: it has not seen the run.
    """

    workdir: pathlib.Path
    name: str
    config: Mapping[str, Any]
    id: str


class Session(Protocol):
    """A tracker's side of a run. All calls come from one thread, which is not the main one; each may fail or wait.

    Attributes:
      id: what the tracker calls the run; the work directory keeps it for the next session.
    """

    @property
    def id(self) -> str: ...  # noqa: D102

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take scalars of a step: a line of `metrics.jsonl` without its undefined values."""
        ...

    def finish(self, status: str, results: Mapping[str, float]) -> None:
        """End the session.

        Args:
          status: finished, interrupted or failed.
          results: numbers of `results.json`, such as `test/image/accuracy` and `test/image/accuracy/low`; empty unless
            the run is finished.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Tracker:
    """A tracker; `train.trackers` selects it.

    Attributes:
      name: an entry of `train.trackers`.
      open: opens a run, or opens it again if the run has an id.
      extra: extra of histojax that it needs; empty: none.
    """

    name: str
    open: Callable[[TrackedRun], Session]
    extra: str = ""


REGISTRY = Registry(Tracker, "tracker", "histojax.trackers")
register = REGISTRY.register


class _Wandb:
    """Weights & Biases: offline, with files to upload, unless `WANDB_MODE` or `WANDB_API_KEY` is set."""

    def __init__(self, run: TrackedRun):
        online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        if not online:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; it would send crash reports
        import wandb

        self.id = run.id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "histojax"),
            name=run.name,
            id=self.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.workdir)),
            mode=None if online else "offline",
            reinit="create_new",  # several runs of a study in one process
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.config.update(dict(run.config), allow_val_change=True)
        # Own steps, because wandb's may not be written twice.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if not online:
            _log.info("tracker wandb: offline; `wandb sync %s` uploads the run", pathlib.Path(self._run.dir).parent)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Session`."""
        self._run.log({**scalars, "step": step})

    def finish(self, status: str, results: Mapping[str, float]) -> None:
        """See `Session`."""
        self._run.summary.update(dict(results))
        self._run.finish(exit_code=int(status != FINISHED))


class _Mlflow:
    """MLflow, at `MLFLOW_TRACKING_URI` or else in its default database in the current folder."""

    def __init__(self, run: TrackedRun):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import
        for name in ("alembic.runtime.migration", "mlflow.store.db.utils"):  # sixty lines about a new database
            logging.getLogger(name).addFilter(_is_warning)
        from mlflow import MlflowClient, entities

        self._entities, self._client = entities, MlflowClient()
        if run.id:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "histojax")
        experiment = self._client.get_experiment_by_name(name)
        folder = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.id = self._client.create_run(folder, run_name=run.name).info.run_id
        # Parameters cannot be changed, so a session that resumes with other epochs does not state them again.
        params = [self._entities.Param(field, str(value)[:500]) for field, value in run.config.items()]
        for start in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(self.id, params=params[start : start + _MLFLOW_BATCH])

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Session`."""
        now = int(time.time() * 1000)
        # MLflow refuses other characters in names, which hold names of classes.
        named = {re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII): value for key, value in scalars.items()}
        metrics = [self._entities.Metric(key, value, now, step) for key, value in named.items()]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self.id, metrics=metrics[start : start + _MLFLOW_BATCH])

    def finish(self, status: str, results: Mapping[str, float]) -> None:
        """See `Session`."""
        self.log(0, results)
        self._client.set_terminated(self.id, _MLFLOW_STATUS[status])


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


register(Tracker("wandb", _Wandb, "wandb"))
register(Tracker("mlflow", _Mlflow, "mlflow"))
