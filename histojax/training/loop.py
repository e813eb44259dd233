"""The training loop: open a run, resume it, train epoch by epoch, evaluate its best checkpoint."""

import contextlib
import dataclasses
import enum
import functools
import json
import logging
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.splits import Split
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.core.settings import diff_settings
from histojax.data.cache import with_cache
from histojax.data.pipeline import CachedBatches, LoaderSpec, train_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.distributed.sharding import Layout
from histojax.training import build, checkpoint, default_config, evaluate, pretrained
from histojax.training.checkpoint import BEST, LAST, Checkpoints
from histojax.training.monitoring import BestTracker, MetricsBuffer, Signals, Watchdog, input_advice
from histojax.training.optimizer import OptimizerSpec, learning_rate
from histojax.training.profiling import Profile
from histojax.training.program import Program
from histojax.training.state import TrainState, all_trees, model_trees, restore, restore_model
from histojax.training.tasks import Task
from histojax.training.writer import MetricsWriter, Progress, RunFile

_log = logging.getLogger(__name__)
# Fields that change neither what is learned nor the data it is learned from (the split's hash guards the data).
_FREE_FIELDS = {"data.root", "data.prepared_dir", "data.mpp", "data.threads", "data.workers", "data.on_bad_record"}
_FREE_FIELDS |= {"data.cache", "data.synthetic", "train.log_every", "train.watchdog"}
# Fields that older runs lack, with the value that such a run had.
_ADDED_FIELDS = {"model.module": "", "train.batch_norm": "global"}
_FREE_GROUPS = ("checkpoint.", "compare.", "evaluation.", "paper.", "sharding.")


class Phase(enum.Enum):
    """The next phase of a run. Checkpoints store it as `unvalidated: bool`."""

    TRAIN = "train"
    VALIDATE = "validate"  # the updates of an epoch are done, but its validation was interrupted


@dataclasses.dataclass(frozen=True)
class _Setup:
    """Everything about a run that its config and data determine."""

    config: ConfigDict
    workdir: pathlib.Path
    layout: Layout
    train_spec: LoaderSpec
    eval_spec: LoaderSpec
    dataset: Dataset
    split: Split
    class_counts: list[int]
    task: Task
    optimizer_spec: OptimizerSpec
    program: Program
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return int(self.config.train.epochs * self.steps_per_epoch)


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


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path, profile: bool = False) -> bool:
    """Train, or resume from the work directory's last checkpoint, and evaluate the best checkpoint.

    SIGTERM and SIGINT stop the run at the next safe moment, from opening the data to the final evaluation.

    Args:
      config: as `histojax.training.default_config.base` has it.
      workdir: made if absent.
      profile: trace a few steps into the work directory's folder `profile` and report the costliest operations.

    Returns:
      Whether the run is finished; False after SIGTERM or SIGINT, when it was saved and can be resumed.

    Raises:
      RunError, DataError: a problem that the user can fix; a loss that is not finite, with its step.
    """
    with Signals() as signals:
        setup = _open_run(config, workdir)
        if signals.requested():
            _log.info("stopped by %s before training; rerun the same command to resume", signals.received)
            return False
        last = Checkpoints(checkpoint.series(setup.workdir, LAST), config.checkpoint.keep)
        best = Checkpoints(checkpoint.series(setup.workdir, BEST), 1)
        with last, best:
            run = _resume(setup, last, best)
            facts = {
                "workdir": str(setup.workdir),
                "model": config.model.name,
                "data": setup.dataset.facts(setup.split),
                "protocol": setup.split.protocol,
            }
            run_file = RunFile(setup.workdir / "run.json", run.step, facts, jax.process_index() == 0)
            with run_file.recording(lambda: run.step):
                finished = _train(run, signals, profile)
        finished = finished and _evaluate_best(setup, signals)
        run_file.end("finished" if finished else "interrupted", run.step)
        return finished


def make_root_absolute(config: ConfigDict) -> None:
    """Make `data.root` absolute, so that a checkpoint finds its images from any folder."""
    if config.data.root:
        config.data.root = str(pathlib.Path(config.data.root).expanduser().resolve())


def check_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Verify that the checkpoints of a work directory, if it has any, belong to this config.

    Raises:
      RunError: they belong to another config; the message names every field that differs.
    """
    path = workdir / "config.json"
    if not (path.is_file() and any(checkpoint.complete_steps(checkpoint.series(workdir, s)) for s in (LAST, BEST))):
        return
    saved, current = _ADDED_FIELDS | _flat(json.loads(path.read_text())), _flat(json.loads(config.to_json()))
    differing = [
        line
        for key, line in diff_settings(saved, current).items()
        if key not in _FREE_FIELDS and not key.startswith(_FREE_GROUPS)
    ]
    if differing:
        lines = [f"{workdir} belongs to a run with another config:", *differing]
        raise RunError("\n".join([*lines, "Use that config, or choose a new --workdir."]))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _open_run(config: ConfigDict, workdir: pathlib.Path) -> _Setup:
    """Check config and work directory, open the data, build the program, and write config.json and split.csv."""
    workdir = workdir.expanduser().absolute()
    default_config.check_values(config)
    make_root_absolute(config)
    check_config(workdir, config)
    pretrained.check(config.model.pretrained, workdir)

    layout = Layout(config.sharding.fsdp, rules=config.sharding.rules)
    train_spec = build.loader_spec(config, layout, training=True)
    eval_spec = build.loader_spec(config, layout, training=False)
    build.check(config)  # these two check the config before the data are read
    cache = build.cache(config)
    dataset = with_cache(open_dataset(config.data), cache, config.data.image_size, config.data.threads)
    split = dataset.split(build.split_spec(config))
    train_indices = split.indices("train")
    steps_per_epoch = max(1, len(train_indices) // train_spec.batch_size)

    counts = dataset.counts(train_indices)
    task = build.task(config, dataset.classes, counts, len(train_indices))
    transform, optimizer_spec = build.optimizer(config, steps_per_epoch)
    program = build.program(config, task, layout, transform)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", json.loads(config.to_json()))
        split.write_csv(workdir / "split.csv", dataset.records, dataset.label_names)
    for line in (*dataset.report(split), f"protocol: {split.protocol}", *split.warnings):
        _log.info(line)
    return _Setup(
        config, workdir, layout, train_spec, eval_spec, dataset, split, counts, task, optimizer_spec, program,
        steps_per_epoch,
    )  # fmt: skip


def _resume(setup: _Setup, last: Checkpoints, best: Checkpoints) -> _Run:
    """Return the run as it continues or starts.

    The first of these that exists decides where it starts:
    1. the newest complete checkpoint of `last`: state, best validation, decision rule, phase;
    2. `model.pretrained`: random weights, overwritten by those of the file;
    3. random weights, a function of the seed.
    """
    config, program = setup.config, setup.program
    last.discard_incomplete()
    best.discard_incomplete()
    watch = BestTracker(config.train.best_metric, config.train.early_stopping, setup.task.METRICS)
    decision_rule = evaluate.default_decision_rule(setup.dataset)
    steps, phase = last.steps(), Phase.TRAIN
    if not steps or steps[-1] < setup.total_steps:  # a finished run is only evaluated
        program.compile_ahead(setup.train_spec.batch_size, config.data.image_size)
    if steps:
        state, meta = restore(last.folder / str(steps[-1]), program.abstract)
        setup.dataset.check_unchanged(setup.split, meta, setup.workdir)
        watch.restore(meta["watch"])
        decision_rule = {key: meta.get(key) for key in decision_rule}  # older checkpoints lack some
        source = meta["pretrained"]
        if meta.get("unvalidated", False):
            phase = Phase.VALIDATE
    else:
        state, source = program.init(), ""
        if config.model.pretrained:
            state, source = pretrained.fill(state, config.model.name, config.model.pretrained)
    step = int(state.step)
    return _Run(setup, last, best, watch, state, step, step, phase, decision_rule, source)


def _train(run: _Run, signals: Signals, profile: bool) -> bool:
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
        MetricsWriter(workdir, run.step, data_note, unvalidated=unvalidated, enabled=first) as writer,
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
    line = f"epoch {epoch}/{config.train.epochs}  step {run.step}  loss {tools.buffer.loss:.4f}"
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
        run.decision_rule = evaluate.fit_decision_rule(output, setup.dataset, val_indices, rule)
        tools.writer.write(run.step, {f"val/{key}": value for key, value in scores.items()})
        line += "".join(f"  val {key} {scores[key]:.4f}" for key in setup.task.METRICS[:3])
        if run.watch.better(scores, run.step):
            run.save(run.best, model_trees(run.state))
        line += run.watch.remark
    tools.progress.say(line)
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
    path = checkpoint.find(setup.workdir)
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
        evaluate.write_results(setup.workdir, table, facts, config, meta)
    return True
