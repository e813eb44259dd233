"""Pretrained weights in a fresh training state, and the weights of a checkpoint as a file."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from histojax import models, weights
from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.core.files import read_json
from histojax.core.settings import config_hash
from histojax.storage import places
from histojax.training import build, checkpoint, default_config, loading
from histojax.training.state import ModelState, TrainState, split_module
from histojax.weights import hub
from histojax.weights.fitting import fit
from histojax.weights.saving import save

_log = logging.getLogger(__name__)


def check(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Check that the weights of a new run can be located; a run that resumes no longer needs them.

    Args:
      config: of the new run; `model` is read, once its plugins are loaded.
      workdir: work directory of the run.

    Raises:
      RunError: no such file or run, a malformed name, missing packages, an unfinished run, or a run of another model.
    """
    source, model = config.model.pretrained, config.model.name
    if not source or checkpoint.complete_steps(checkpoint.series(workdir, checkpoint.LAST)):
        return
    place = _local(source)
    run = _find_run(place)
    if run is None:
        hub.check(place)
        return
    saved = default_config.with_defaults(checkpoint.read_meta(run)["config"])
    if (other := saved["model"]["name"]) != model:
        raise RunError(f"model.pretrained={source}: a run of the model {other}; use model.name={other}")
    _check_finished(source, place, run)
    _check_options(source, model, saved["model"]["options"], build.model_options(config))


def _check_finished(source: str, place: str, run: pathlib.Path) -> None:
    """Refuse a work directory whose run is not finished. Its checkpoints, without a run.json, can still be named."""
    sessions = (read_json(expand_user(place) / "run.json") or {}).get("sessions")
    status = sessions[-1].get("status") if sessions else "finished"
    if status != "finished":
        raise RunError(
            f"model.pretrained={source}: this run is not finished (run.json: {status}). "
            f"Rerun its command to finish it, or name a checkpoint, such as {run}"
        )


def _check_options(source: str, model: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a run whose options give parameters of other shapes, except in the classifier."""
    spec = models.spec(model)
    try:
        old, new = spec.configure(theirs), spec.configure(ours)
    except ValueError as error:  # of another version, or of another model of the user's own by this name
        raise RunError(f"model.pretrained={source}: {error}") from error
    built_with = [name for name in spec.options if name not in spec.drop_options]
    differing = [name for name in built_with if getattr(old, name) != getattr(new, name)]
    if not differing:
        return

    def shapes(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        module = nnx.eval_shape(lambda: models.create(model, num_classes=2, rngs=nnx.Rngs(0), **options))
        names = {name: leaf.shape for name, leaf in _leaves(split_module(module))}
        return {name: shape for name, shape in names.items() if not name.startswith(spec.classifier)}

    if shapes(theirs) != shapes(ours):
        fields = " ".join(f"--config.model.options.{name}={getattr(old, name)}" for name in differing)
        raise RunError(f"model.pretrained={source}: a run of {model} with other options; use {fields}")


def fill(
    state: TrainState, model: str, source: str, prefix: str = "", classes: Sequence[str] = ()
) -> tuple[TrainState, str]:
    """Replace the parameters of a fresh state, and of its moving average, by those of a file or of a run.

    Args:
      state: state of the model, already sharded.
      model: name of the model.
      source: a file that `weights.inspect` reads, a work directory or checkpoint of a run of the same model, or
        `hf:OWNER/NAME[@REVISION][/FILE]`.
      prefix: one of several networks in the file, as for `weights.inspect`.
      classes: of the new run. The classifier of a run for other classes is left out.

    Returns:
      The state, and a line for the results that says which weights were loaded from where.

    Raises:
      RunError: no such file or run, a damaged one, weights of another model, or no network.
    """
    place = _local(source)
    run = _find_run(place)
    contents = _read_run(run, classes) if run else weights.inspect(hub.locate(place), prefix=prefix)
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _leaves(state.model)}
    values, report = fit(contents, model, expected, prefix)
    _log.info("%s\n%s", contents, report)

    def fill_tree(tree: Any) -> Any:
        def replace(key: Any, leaf: Any) -> jax.Array:
            value = values.get(_name(key))
            if value is None:
                return leaf
            return jax.make_array_from_callback(leaf.shape, leaf.format, lambda index: value[index])

        return jax.tree_util.tree_map_with_path(replace, tree)

    def fill_model(old: ModelState) -> ModelState:
        return ModelState(fill_tree(old.params), fill_tree(old.stats), old.rng)

    initial = sorted({name.split("/")[0] for name in expected if name not in values})
    note = f"; random at first: {', '.join(initial)}" if initial else ""
    hashes = f"sha256 {_digest(place)[:16]}…"
    if run:
        hashes += f", config {config_hash(checkpoint.read_meta(run)['config'])}"
    origin = f"{source} ({hashes}), {len(values)} arrays{note}"
    # The moving average gets its own arrays, because a step donates the memory of its arguments.
    state.model, state.ema = fill_model(state.model), None if state.ema is None else fill_model(state.ema)
    return state, origin


def digest(source: str) -> str:
    """Return the sha256 of a file of weights, 64 digits; of a run, the 16 digits that identify its checkpoint.

    Args:
      source: as for `fill`.

    Raises:
      RunError: no such file or run, or no network.
    """
    return _digest(_local(source))


def _digest(place: str) -> str:
    run = _find_run(place)
    return weights.sha256(hub.locate(place)) if run is None else checkpoint.digest(run)


def export(source: pathlib.Path, output: pathlib.Path, naming: str = "", dtype: str = "float32") -> str:
    """Write the model of a checkpoint as `model.safetensors` and `config.json`; see `weights.saving.save`.

    Args:
      source: a work directory or a checkpoint.
      output: folder, created if missing.
      naming: title of the parameter names in the file.
      dtype: type of the values in the file: float32, float16 or bfloat16.

    Returns:
      A line for the user that says what was written.

    Raises:
      RunError: a missing or damaged checkpoint, or a naming without names for some of the model's parameters.
    """
    trained = loading.load(source)
    meta, config = trained.meta, trained.config
    values = {name: np.asarray(leaf) for name, leaf in _leaves(trained.model)}
    facts = {
        "architecture": config.model.name,
        "options": config.model.options.to_dict(),
        "task": config.data.task,
        "classes": meta["classes"],
        "thresholds": meta["thresholds"],
        "image_size": config.data.image_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        **({} if trained.stain is None else {"stain": trained.stain.to_json()}),
        "split_hash": meta["split"]["hash"],
        "protocol": meta["split"]["protocol"],
        "step": meta["step"],
    }
    return save(values, facts, output, naming, dtype)


def _find_run(place: str) -> pathlib.Path | None:
    """Return the checkpoint that a source on this machine leads to; None if it is not a folder."""
    path = expand_user(place)
    return checkpoint.find(path) if path.is_dir() else None


def _local(source: str) -> str:
    """Return the source, and for an address in a bucket its copy on this machine."""
    return str(places.local(source)) if places.is_address(source) else source


def _read_run(path: pathlib.Path, classes: Sequence[str]) -> weights.Contents:
    """Read the model of a checkpoint, by our own names, without a classifier for other classes."""
    trained = loading.load(path)
    classifier = models.spec(trained.config.model.name).classifier
    same = list(trained.meta["classes"]) == list(classes)
    if not same:
        _log.info("%s: has the classes %s: the classifier starts at random", path, ", ".join(trained.meta["classes"]))
    arrays = {
        name: np.asarray(leaf) for name, leaf in _leaves(trained.model) if same or not name.startswith(classifier)
    }
    return weights.Contents(path, arrays)


def _leaves(model: ModelState) -> list[tuple[str, Any]]:
    return [
        (_name(path), leaf)
        for tree in (model.params, model.stats)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
