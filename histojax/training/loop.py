"""The training loop, from top to bottom."""

import contextlib
import functools
import json
import logging
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.core.settings import diff_settings
from histojax.data.cache import with_cache
from histojax.data.pipeline import CachedBatches, train_batches
from histojax.data.sources import open_dataset
from histojax.distributed.sharding import Layout
from histojax.training import build, checkpoint, evaluate, pretrained
from histojax.training.checkpoint import BEST, LAST, Checkpoints
from histojax.training.monitoring import BestTracker, MetricsBuffer, Signals, Watchdog, input_advice
from histojax.training.optimizer import learning_rate
from histojax.training.profiling import Profile
from histojax.training.step import ModelState, Program, TrainState
from histojax.training.writer import MetricsWriter, Progress, RunFile

_log = logging.getLogger(__name__)
# Fields that change neither what is learned nor what it is learned from (the split's hash guards the data).
_FREE_FIELDS = {"data.root", "data.prepared_dir", "data.mpp", "data.threads", "data.workers", "data.on_bad_record"}
_FREE_FIELDS |= {"data.cache", "train.log_every", "train.watchdog"}
_FREE_GROUPS = ("checkpoint.", "compare.", "evaluation.", "paper.", "sharding.")


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path, profile: bool = False) -> bool:
    """Trains, or goes on where the work directory's last checkpoint ends, and evaluates the best checkpoint.

    Args:
      config: as `histojax.training.config.base` has it.
      workdir: made if absent.
      profile: a few steps are traced in its folder `profile`, and their costliest operations told.

    Returns:
      Whether the run is finished; False after SIGTERM or SIGINT, when it was saved to be continued.

    Raises:
      RunError, DataError: what the user can mend, in words; a loss that is not finite, with its step.
    """
    # ---- Work directory -------------------------------------------------------------------------------------
    first = jax.process_index() == 0
    workdir = workdir.expanduser().absolute()
    make_root_absolute(config)
    check_config(workdir, config)

    # ---- Data -----------------------------------------------------------------------------------------------
    layout = Layout(config.sharding.fsdp, rules=config.sharding.rules)
    train_spec = build.loader_spec(config, layout, training=True)
    eval_spec = build.loader_spec(config, layout, training=False)
    augmentation = build.augment_spec(config)
    rule = build.threshold_rule(config)
    cache = build.cache(config)
    dataset = with_cache(open_dataset(config.data), cache, config.data.image_size, config.data.threads)
    split = dataset.split(build.split_spec(config))
    train_indices, val_indices = split.indices("train"), split.indices("val")
    steps_per_epoch = max(1, len(train_indices) // train_spec.batch_size)
    total_steps = config.train.epochs * steps_per_epoch

    # ---- Program --------------------------------------------------------------------------------------------
    counts = dataset.counts(train_indices)
    task = build.task(config, dataset.classes, counts, len(train_indices))
    transform, optimizer_spec = build.optimizer(config, steps_per_epoch)
    program = build.program(config, task, layout, transform)
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", json.loads(config.to_json()))
        split.write_csv(workdir / "split.csv", dataset.records, dataset.label_names)
    for line in (*dataset.report(split), f"protocol: {split.protocol}", *split.warnings):
        _log.info(line)

    last = Checkpoints(checkpoint.series(workdir, LAST), config.checkpoint.keep)
    best = Checkpoints(checkpoint.series(workdir, BEST), 1)
    with last, best:
        # ---- State: the last checkpoint's, or a fresh one -----------------------------------------------------
        last.discard_incomplete()
        best.discard_incomplete()
        watch = BestTracker(config.train.best_metric, config.train.early_stopping, task.METRICS)
        chosen = evaluate.default_decision_rule(dataset)
        unvalidated = False  # whether an epoch has ended whose validation was cut short
        if not last.steps() or last.steps()[-1] < total_steps:  # not of a run that is finished
            program.compile_ahead(train_spec.batch_size, config.data.image_size)
        if last.steps():
            path = last.folder / str(last.steps()[-1])
            state, meta = restore(path, program)
            if meta["split"]["hash"] != split.hash:
                raise RunError(
                    f"{workdir}: the data or its split has changed since the run began (split {meta['split']['hash']}, "
                    f"now {split.hash}); point data.root at the same images or use a new work directory"
                )
            watch.restore(meta["watch"])
            chosen, origin = {key: meta.get(key) for key in chosen}, meta["pretrained"]  # older ones have not all
            unvalidated = meta.get("unvalidated", False)
        else:
            state, origin = program.init(), ""
            if config.model.pretrained:
                state, origin = pretrained.fill(state, config.model.name, config.model.pretrained)
        step = int(state.step)

        data_note = dataset.prepared.description if dataset.prepared.synthetic else ""
        facts = {
            "workdir": str(workdir),
            "model": config.model.name,
            "data": dataset.facts(split),
            "protocol": split.protocol,
        }
        run_file = RunFile(workdir / "run.json", step, facts, first)
        constants = {
            "format": checkpoint.FORMAT,
            "config": json.loads(config.to_json()),
            "classes": list(dataset.classes),
            "class_counts": counts,
            "train_images": len(train_indices),
            "pretrained": origin,
            "split": split.to_json(),
            "data": dataset.facts(split),
        }

        def save(series: Checkpoints, named: dict[str, Any]) -> None:
            # The stream of batches is a function of seed and position, so its state is one number.
            position = {"next_index": step * train_spec.batch_size, "seed": train_spec.seed}
            now = {"step": step, "watch": watch.to_json(), "stream": position, "unvalidated": unvalidated}
            series.save(step, named, constants | now | chosen)

        # ---- Loop ---------------------------------------------------------------------------------------------
        progress = Progress(total_steps, step, train_spec.batch_size, first)
        with (
            run_file.recording(lambda: step),
            contextlib.closing(progress),
            Signals() as signals,
            Watchdog(config.train.watchdog) as watchdog,
            Profile(workdir / "profile" if profile and first else None) as profiler,
            MetricsWriter(workdir, step, data_note, unvalidated=unvalidated, enabled=first) as writer,
            contextlib.ExitStack() as workers,
        ):

            def stop() -> bool:
                watchdog.beat(step)
                return signals.requested()

            windows = MetricsBuffer(writer, progress, learning_rate(optimizer_spec), train_spec.batch_size)
            saved = step
            validation = CachedBatches(dataset, val_indices, eval_spec)
            if (step < total_steps or unvalidated) and not watch.stopped:
                batches = train_batches(dataset, train_indices, train_spec, augmentation, start=step)
                workers.callback(batches.close)
            advised = jax.default_backend() == "cpu"  # there, who decodes takes cores from who computes
            batch: Any = None
            while (step < total_steps or unvalidated) and not watch.stopped and not stop():
                if not unvalidated:
                    with windows.waiting():
                        batch = layout.to_device(next(batches))
                    state, metrics = program.train(state, batch)
                    step += 1
                    profiler.after_step(metrics, functools.partial(program.compiled_train, state, batch))
                    windows.add(step, metrics)
                    progress.advance()
                    if step % config.train.log_every == 0:
                        windows.close()
                    if step % steps_per_epoch:
                        continue

                windows.flush()  # so that nothing that is not finite gets into a checkpoint
                if not advised and (
                    advice := input_advice(windows.input_wait, workers=train_spec.workers, cache=cache)
                ):
                    progress.say(advice)
                    advised = True
                epoch = step // steps_per_epoch
                line = f"epoch {epoch}/{config.train.epochs}  step {step}  loss {windows.loss:.4f}"
                if len(val_indices):
                    model = state.ema or state.model
                    try:
                        outcome = evaluate.run_model(program, model, validation, len(val_indices), layout, stop)
                    except evaluate.Stopped:
                        unvalidated = True
                        break
                    unvalidated = False
                    measured = evaluate.validation_metrics(outcome, dataset, val_indices)
                    chosen = evaluate.fit_decision_rule(outcome, dataset, val_indices, rule)
                    writer.write(step, {f"val/{key}": value for key, value in measured.items()})
                    line += "".join(f"  val {key} {measured[key]:.4f}" for key in task.METRICS[:3])
                    if watch.better(measured, step):
                        save(best, model_trees(state))
                        line += "  *"
                progress.say(line)
                if epoch % config.checkpoint.every_epochs == 0 or step == total_steps or watch.stopped:
                    best.wait()  # a last checkpoint must not know of a best one that a kill then takes away
                    save(last, all_trees(state))
                    saved = step
                windows.restart_clock()
            windows.flush()
            batch = None  # on processors it lies in memory that is shared with a worker
            if signals.received:
                if saved != step or unvalidated:
                    save(last, all_trees(state))
                last.wait()
                progress.say(f"stopped by {signals.received} at step {step}, saved; the same command goes on")
                run_file.end("interrupted", step)
                return False

    # ---- Evaluation of the best checkpoint ------------------------------------------------------------------------
    path = checkpoint.find(workdir)
    model = evaluate.restore_model(path, program)
    sides = ("val", "test") if len(val_indices) else ("test",)
    with Signals() as signals:
        try:
            table = evaluate.predict_split(program, model, dataset, split, sides, eval_spec, layout, signals.requested)
        except evaluate.Stopped:
            run_file.end("interrupted", step)
            return False
    meta = checkpoint.read_meta(path)
    if first:
        facts = evaluate.result_facts(config, dataset, split, split.protocol, path, meta)
        evaluate.write_results(workdir, table, facts, config, meta)
    run_file.end("finished", step)
    return True


def make_root_absolute(config: ConfigDict) -> None:
    """So that a checkpoint finds its images from any folder."""
    if config.data.root:
        config.data.root = str(pathlib.Path(config.data.root).expanduser().resolve())


def check_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Verifies that the checkpoints of a work directory, if it has any, are of this config.

    Raises:
      RunError: they are of another one; every field that differs is named.
    """
    path = workdir / "config.json"
    if not (path.is_file() and any(checkpoint.complete_steps(checkpoint.series(workdir, s)) for s in (LAST, BEST))):
        return
    there, here = _flat(json.loads(path.read_text())), _flat(json.loads(config.to_json()))
    differing = [
        line
        for key, line in diff_settings(there, here).items()
        if key not in _FREE_FIELDS and not key.startswith(_FREE_GROUPS)
    ]
    if differing:
        lines = [f"{workdir} belongs to a run of another config:", *differing]
        raise RunError("\n".join([*lines, "Go on with that config, or choose a new --workdir."]))


def model_trees(state: TrainState) -> dict[str, Any]:
    """What predicts, as the named trees of a checkpoint: the model and, with EMA, its average."""
    named = {"model": state.model.as_dict()}
    return named if state.ema is None else named | {"ema": state.ema.as_dict()}


def all_trees(state: TrainState) -> dict[str, Any]:
    """A whole state as the named trees of a checkpoint."""
    return model_trees(state) | {"train": {"step": state.step, "opt": state.opt, "key": state.key}}


def restore(path: pathlib.Path, program: Program) -> tuple[TrainState, dict[str, Any]]:
    """A checkpoint's state and what it holds beside."""
    found = checkpoint.restore(path, all_trees(program.abstract))
    state = TrainState(
        step=found["train"]["step"],
        model=ModelState(**found["model"]),
        opt=found["train"]["opt"],
        key=found["train"]["key"],
        ema=ModelState(**found["ema"]) if "ema" in found else None,
    )
    return state, checkpoint.read_meta(path)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
