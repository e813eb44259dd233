"""The training loop: open a run, resume it, train epoch by epoch, evaluate its best checkpoint."""

import contextlib
import dataclasses
import enum
import functools
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from histojax.core import plugins
from histojax.core.files import write_json
from histojax.core.locks import OwnerFile, owned
from histojax.data.pipeline import CachedBatches, train_batches
from histojax.distributed import processes
from histojax.training import build, checkpoint, default_config, evaluate, pretrained, work_directory
from histojax.training.checkpoint import BEST, LAST, Checkpoints
from histojax.training.decision_rule import default_decision_rule, fit_decision_rule
from histojax.training.monitoring import BestTracker, MetricsBuffer, Signals, Watchdog, input_advice
from histojax.training.optimizer import learning_rate
from histojax.training.profiling import Profile
from histojax.training.run_folder import RunFolder, run_folder
from histojax.training.state import TrainState, all_trees, model_trees, restore, restore_model
from histojax.training.tracking import Tracking
from histojax.training.tracking import check as check_trackers
from histojax.training.trainer import Trainer, make_paths_absolute, open_trainer
from histojax.training.writer import MetricsWriter, Progress, RunFile

_log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """The next phase of a run. Checkpoints store it as `unvalidated: bool`."""

    TRAIN = "train"
    VALIDATE = "validate"  # the updates of an epoch are done, but its validation was interrupted


@dataclasses.dataclass(frozen=True)
class _Setup(Trainer):
    """Everything about a run that its config and data determine, and the lock of its work directory."""

    workdir: pathlib.Path
    folder: RunFolder
    owner: OwnerFile
    replanned: bool  # since the last save, train.epochs has changed


@dataclasses.dataclass
class _Run:
    """What changes while a run trains.

    Attributes:
      setup: the fixed part.
      last: checkpoints to resume from.
      best: the checkpoint with the best validation.
      watch: the best validation so far.
      state: after `step` updates.
      step: updates done.
      saved_step: step of the newest checkpoint to resume from.
      phase: the next phase.
      decision_rule: fitted on the latest validation.
      pretrained: where the initial weights came from.
    """

    setup: _Setup
    last: Checkpoints
    best: Checkpoints
    watch: BestTracker
    state: TrainState
    step: int
    saved_step: int
    phase: Phase
    decision_rule: dict[str, Any]
    pretrained: str

    @property
    def unfinished(self) -> bool:
        return (self.step < self.setup.total_steps or self.phase is Phase.VALIDATE) and not self.watch.stopped

    def save(self, series: Checkpoints, trees: dict[str, Any]) -> None:
        setup = self.setup
        setup.owner.verify()
        setup.folder.verify()
        # The stream of batches is a function of seed and position, so its state is one number.
        position = {"next_index": self.step * setup.train_spec.batch_size, "seed": setup.train_spec.seed}
        meta = {
            "format": checkpoint.FORMAT,
            "config": json.loads(setup.config.to_json()),
            "classes": list(setup.dataset.classes),
            "class_counts": setup.class_counts,
            "train_images": len(setup.split.indices("train")),
            "pretrained": self.pretrained,
            "split": setup.split.to_json(),
            "data": setup.dataset.facts(setup.split),
            "step": self.step,
            "watch": self.watch.to_json(),
            "stream": position,
            "unvalidated": self.phase is Phase.VALIDATE,
        }
        if setup.stain is not None:
            meta["stain"] = setup.stain
        series.save(self.step, trees, meta | self.decision_rule)

    def save_last(self) -> None:
        self.save(self.last, all_trees(self.state))
        self.saved_step = self.step


@dataclasses.dataclass(frozen=True)
class _Tools:
    """What watches and records the loop."""

    signals: Signals
    watchdog: Watchdog
    profiler: Profile
    writer: MetricsWriter
    progress: Progress
    buffer: MetricsBuffer
    validation: CachedBatches


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    profile: bool = False,
    decision_rule: Mapping[str, Any] | None = None,
) -> bool:
    """Train, or resume from the work directory's last checkpoint, and evaluate the best checkpoint.

    SIGTERM and SIGINT stop the run at the next safe moment, from opening the data to the final evaluation.

    Args:
      config: as `histojax.training.default_config.base` has it.
      workdir: made if absent; also an address in a bucket, gs:// or s3://.
      profile: trace a few steps into the work directory's folder `profile` and report the costliest operations.
      decision_rule: for a run without validation images, one that `histojax.training.decision_rule` chose on others.

    Returns:
      Whether the run is finished; False after SIGTERM or SIGINT, when it was saved and can be resumed.

    Raises:
      RunError, DataError: a problem that the user can fix; a loss that is not finite, with its step.
    """
    first = jax.process_index() == 0
    with (
        Signals() as signals,
        run_folder(workdir) as folder,
        owned(folder.path, enabled=first) as owner,
        Tracking(folder.path, first) as tracking,
    ):
        workdir = folder.path
        processes.barrier(f"owned {folder.place}")  # no process reads what another run may still write
        setup = _open_run(config, folder, owner)
        if signals.requested():
            _log.info("stopped by %s before training; rerun the same command to resume", signals.received)
            return False
        series = functools.partial(Checkpoints, shared=folder.shared, sealed=folder.publish)
        last = series(checkpoint.series(workdir, LAST), config.checkpoint.keep)
        best = series(checkpoint.series(workdir, BEST), 1)
        with last, best:
            run = _resume(setup, last, best, decision_rule)
            run_file = _write_description(run)
            tracking.start(config.train.trackers, work_directory.flat(json.loads(config.to_json())))
            with run_file.recording(lambda: run.step):
                finished = _train(run, signals, profile, tracking)
        if finished:
            folder.fetch("checkpoints/")
        with run_file.recording(lambda: run.step):
            finished = finished and _evaluate_best(setup, signals)
            if finished and first:
                tracking.finish(json.loads((workdir / "results.json").read_text(encoding="utf-8")))
        run_file.end("finished" if finished else "interrupted", run.step)
        return finished


def _open_run(config: ConfigDict, folder: RunFolder, owner: OwnerFile) -> _Setup:
    """Check config and work directory, open the data and build the program; the work directory is only read."""
    workdir = folder.path
    default_config.check_values(config)
    make_paths_absolute(config)
    saved = work_directory.read_saved(workdir)
    if saved is not None:
        work_directory.check_config(workdir, saved["config"], config)
    plugins.load(config.plugins)
    pretrained.check(config, workdir)
    check_trackers(config.train.trackers)
    opened = open_trainer(config, saved)
    replanned = False
    if saved is not None:
        opened.dataset.check_unchanged(opened.split, saved, workdir)
        replanned = work_directory.check_end(workdir, saved, config, opened.total_steps)
    return _Setup(**vars(opened), workdir=workdir, folder=folder, owner=owner, replanned=replanned)


def _resume(setup: _Setup, last: Checkpoints, best: Checkpoints, rule: Mapping[str, Any] | None) -> _Run:
    """Return the run as it continues or starts. The first of these that exists decides where it starts:

    1. the newest complete checkpoint of `last`: state, best validation, decision rule, phase;
    2. `model.pretrained`: random weights, overwritten by those of the file or run;
    3. random weights, a function of the seed.
    """
    config, program = setup.config, setup.program
    last.discard_incomplete()
    best.discard_incomplete()
    watch = BestTracker(config.train.best_metric, config.train.early_stopping, setup.task.METRICS)
    decision_rule = dict(rule or default_decision_rule(setup.dataset))
    steps, phase = last.steps(), Phase.TRAIN
    if not steps or steps[-1] < setup.total_steps:  # a finished run is only evaluated
        _log.info("compiling %s (minutes for a large model; later starts take it from the cache)", config.model.name)
        program.compile_ahead(setup.train_spec.batch_size, config.data.image_size)
    best_discarded = setup.replanned and best.discard_after(steps[-1] if steps else 0)
    if steps:
        state, meta = restore(last.folder / str(steps[-1]), program.abstract)
        if not best_discarded:
            watch.restore(meta["watch"])
        decision_rule = {key: meta.get(key) for key in decision_rule}  # older checkpoints lack some
        source = meta["pretrained"]
        if meta.get("unvalidated", False):
            phase = Phase.VALIDATE
    else:
        state, source = setup.initial_state()
    step = int(state.step)
    if step:
        _log.info("resuming at step %d of %d", step, setup.total_steps)
    if watch.stopped:
        _log.info("training stopped early at step %d; raise train.early_stopping, or set it to 0, to continue", step)
    return _Run(setup, last, best, watch, state, step, step, phase, decision_rule, source)


def _write_description(run: _Run) -> RunFile:
    """Write `config.json`, `split.csv` and `run.json`, once everything that could refuse the run has been checked."""
    setup, first = run.setup, jax.process_index() == 0
    workdir, dataset, split = setup.workdir, setup.dataset, setup.split
    if first:
        write_json(workdir / "config.json", json.loads(setup.config.to_json()))
        split.write_csv(workdir / "split.csv", dataset.records, dataset.label_names)
    facts = {
        "workdir": setup.folder.place,
        "model": setup.config.model.name,
        "data": dataset.facts(split),
        "protocol": split.protocol,
        "pretrained": run.pretrained or None,
        "stain": setup.stain,
    }
    return RunFile(workdir / "run.json", run.step, facts, first)


def _train(run: _Run, signals: Signals, profile: bool, tracking: Tracking) -> bool:
    """Run the loop until it is finished (True) or a signal stops it, with everything saved (False)."""
    setup, first = run.setup, jax.process_index() == 0
    config, workdir, dataset = setup.config, setup.workdir, setup.dataset
    data_note = dataset.prepared.description if dataset.prepared.synthetic else ""
    unvalidated = run.phase is Phase.VALIDATE
    progress = Progress(setup.total_steps, run.step, setup.train_spec.batch_size, first)
    with (
        contextlib.closing(progress),
        Watchdog(config.train.watchdog) as watchdog,
        Profile(workdir / "profile" if profile and first else None) as profiler,
        MetricsWriter(
            workdir, run.step, data_note, unvalidated=unvalidated, enabled=first, track=tracking.log
        ) as writer,
        contextlib.ExitStack() as workers,
    ):
        rate = learning_rate(setup.optimizer_spec)
        buffer = MetricsBuffer(writer, progress, rate, setup.train_spec.batch_size)
        validation = CachedBatches(dataset, setup.split.indices("val"), setup.eval_spec)
        tools = _Tools(signals, watchdog, profiler, writer, progress, buffer, validation)
        _run_epochs(run, tools, workers)
        buffer.flush()
        if not signals.received:
            return True
        if run.saved_step != run.step or run.phase is Phase.VALIDATE:
            run.save_last()
        run.last.wait()
        progress.say(f"stopped by {signals.received} at step {run.step}, saved; rerun the same command to resume")
        return False


def _run_epochs(run: _Run, tools: _Tools, workers: contextlib.ExitStack) -> None:
    """Alternate between updates and the end of an epoch until the run is finished or is to stop."""
    setup = run.setup
    config = setup.config
    if run.unfinished:
        augmentation = build.augment_spec(config)
        batches = train_batches(
            setup.dataset, setup.split.indices("train"), setup.train_spec, augmentation, start=run.step
        )
        workers.callback(batches.close)
    first_step = run.step + 1
    advised = jax.default_backend() == "cpu"  # there, decoding takes cores from computing
    while run.unfinished and not _stop_requested(run, tools):
        if run.phase is Phase.TRAIN:
            with tools.buffer.waiting():
                batch = setup.layout.to_device(next(batches))
            run.state, metrics = setup.program.train(run.state, batch)
            run.step += 1
            tools.profiler.after_step(metrics, functools.partial(setup.program.compiled_train, run.state, batch))
            tools.buffer.add(run.step, metrics)
            tools.progress.advance()
            if run.step == first_step:
                tools.buffer.restart_clock()  # compiling is no part of the speed
            if run.step % config.train.log_every == 0:
                tools.buffer.close()
            if run.step % setup.steps_per_epoch:
                continue
        tools.buffer.flush()  # raises if a loss is not finite, before it gets into a checkpoint
        if not advised:
            cache, workers_used = build.cache(config), setup.train_spec.workers
            if advice := input_advice(tools.buffer.input_wait, workers=workers_used, cache=cache):
                tools.progress.say(advice)
                advised = True
        if not _end_of_epoch(run, tools):
            break
        tools.buffer.restart_clock()


def _end_of_epoch(run: _Run, tools: _Tools) -> bool:
    """Validate, track the best model and save; False if a signal interrupted the validation."""
    setup = run.setup
    config, val_indices = setup.config, setup.split.indices("val")
    epoch = run.step // setup.steps_per_epoch
    parts = [f"epoch {epoch}/{config.train.epochs}", f"step {run.step}", tools.buffer.describe()]
    if len(val_indices):
        model = run.state.ema or run.state.model
        stop = functools.partial(_stop_requested, run, tools)
        try:
            output = evaluate.run_model(setup.program, model, tools.validation, len(val_indices), setup.layout, stop)
        except evaluate.Stopped:
            run.phase = Phase.VALIDATE
            return False
        run.phase = Phase.TRAIN
        scores = evaluate.validation_metrics(output, setup.dataset, val_indices)
        rule = build.threshold_rule(config)
        run.decision_rule = fit_decision_rule(output, setup.dataset, val_indices, rule, config.train.temperature)
        tools.writer.write(run.step, {f"val/{key}": value for key, value in scores.items()})
        parts += [f"val {key} {scores[key]:.4f}" for key in setup.task.METRICS[:3]]
        if run.watch.better(scores, run.step):
            run.save(run.best, model_trees(run.state))
        parts.append(run.watch.remark.strip())
    tools.progress.say("  ".join(part for part in parts if part) + tools.progress.time_left())
    if epoch % config.checkpoint.every_epochs == 0 or run.step == setup.total_steps or run.watch.stopped:
        run.best.wait()  # a last checkpoint must not refer to a best one that a kill could still prevent
        run.save_last()
    return True


def _stop_requested(run: _Run, tools: _Tools) -> bool:
    tools.watchdog.beat(run.step)
    return tools.signals.requested()


def _evaluate_best(setup: _Setup, signals: Signals) -> bool:
    """Evaluate the best checkpoint and write the results; False if a signal interrupted it."""
    config, dataset, split, program = setup.config, setup.dataset, setup.split, setup.program
    setup.owner.verify()
    path = checkpoint.find(setup.workdir)
    num_images = sum(len(split.indices(side)) for side in ("val", "test"))
    _log.info("evaluating %s on %d validation and test images", path.relative_to(setup.workdir), num_images)
    model = restore_model(path, program.abstract)
    sides = ("val", "test") if len(split.indices("val")) else ("test",)
    try:
        table = evaluate.predict_split(
            program, model, dataset, split, sides, setup.eval_spec, setup.layout, signals.requested
        )
    except evaluate.Stopped:
        _log.info("stopped by %s in the final evaluation; rerun the same command to resume", signals.received)
        return False
    meta = checkpoint.read_meta(path)
    if jax.process_index() == 0:
        facts = evaluate.result_facts(config, dataset, split, split.protocol, path, meta)
        evaluate.write_results(setup.workdir, table, facts, config, meta, dataset, split)
    return True
