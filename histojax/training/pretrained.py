"""Where weights from elsewhere meet models: into a fresh state, and out of a checkpoint."""

import hashlib
import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import nnx

from histojax import models, weights
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.models.rngs import seeded
from histojax.training import build, evaluate
from histojax.training.step import ModelState, TrainState

_log = logging.getLogger(__name__)
OWN = "histojax"  # the naming of files that hold our own paths, with dots
_HEAD = "head/"  # a classifier for other classes is none for these
_POSITIONS = ("pos_embed", "pos_embedding", "position_embeddings")
_HUB = "hf:"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_OUTPUT = _HUB_FILES[0]
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def fill(state: TrainState, model: str, source: str) -> tuple[TrainState, str]:
    """A fresh state with the weights of a file in it, in the model and in its moving average.

    Args:
      state: of the model, born sharded.
      model: its name.
      source: a file (.safetensors, .npz, .pth, .pt, .bin, .ckpt) or `hf:OWNER/NAME[/FILE]`.

    Returns:
      The state, and in words what was loaded from where: results print it.

    Raises:
      RunError: no such file, a damaged one, weights of another model, no network.
    """
    path = locate(source)
    contents = weights.inspect(path)
    values, report = _convert(contents.arrays, model, _expected(state.model), str(path))
    _log.info("%s\n%s", contents, report)

    def filled(tree: Any) -> Any:
        def put(key: Any, leaf: Any) -> jax.Array:
            value = values.get(_name(key))
            if value is None:
                return leaf
            return jax.make_array_from_callback(leaf.shape, leaf.format, lambda index: value[index])

        return jax.tree_util.tree_map_with_path(put, tree)

    def loaded(kept: ModelState) -> ModelState:
        return ModelState(filled(kept.params), filled(kept.stats), kept.rng)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    initial = sorted({path.split("/")[0] for path in _expected(state.model) if path not in values})
    new = f"; random at first: {', '.join(initial)}" if initial else ""
    words = f"{source} (sha256 {digest}…), {len(values)} arrays{new}"
    # The moving average gets arrays of its own: a step takes back the memory of what it is given.
    state.model, state.ema = loaded(state.model), None if state.ema is None else loaded(state.ema)
    return state, words


def locate(source: str) -> pathlib.Path:
    """The file that `source` names: itself, or what `hf:OWNER/NAME[/FILE]` holds, downloaded once.

    Without FILE it is `model.safetensors`, or `pytorch_model.bin` where the repository has no other.

    Raises:
      RunError: no such file, huggingface_hub is not installed, or the download fails.
    """
    if not source.startswith(_HUB):
        path = pathlib.Path(source).expanduser()
        if not path.is_file():
            raise RunError(f"model.pretrained={source}: no such file")
        return path
    owner, _, rest = source.removeprefix(_HUB).partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise RunError(f"model.pretrained={source} is not hf:OWNER/NAME or hf:OWNER/NAME/FILE")
    try:
        import huggingface_hub
    except ImportError as error:
        raise RunError(f"model.pretrained={source} needs huggingface_hub: pip install 'histojax[hub]'") from error
    wanted = [file] if file else list(_HUB_FILES)
    for candidate in wanted:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(f"{owner}/{name}", candidate))
        except huggingface_hub.errors.EntryNotFoundError as error:
            # Offline, a file that is not in the cache is such an error, too; then it is the connection that is missing.
            if candidate != wanted[-1] and not isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
                continue
            raise _not_downloaded(source, candidate, error) from error
        except Exception as error:  # whatever the network, its proxies and the hub have to say
            raise _not_downloaded(source, candidate, error) from error
    raise AssertionError(wanted)


def _not_downloaded(source: str, file: str, error: Exception) -> RunError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RunError(
        f"model.pretrained={source}: {file} could not be downloaded and is not in the cache ({first}). Offline, name a "
        "file that you have; of a repository behind a licence, accept it there and set HF_TOKEN"
    )


def export(source: pathlib.Path, output: pathlib.Path, naming: str = "", dtype: str = "float32") -> str:
    """Writes the model of a checkpoint as `model.safetensors` and `config.json`.

    Args:
      source: a work directory or a checkpoint.
      output: a folder, made if it is not there.
      naming: of the parameters: one of the model's in `weights.TABLES`, such as torchvision's, or `histojax`, our
        paths with dots; empty: the first that has a name for every parameter.
      dtype: of the file: float32, float16 or bfloat16.

    Returns:
      What was written, in words.

    Raises:
      RunError: no or a damaged checkpoint, a naming that lacks parameters of the model.
    """
    trained = evaluate.load(source)
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
        "split_hash": meta["split"]["hash"],
        "protocol": meta["split"]["protocol"],
        "step": meta["step"],
    }
    return _write(values, facts, output, naming, dtype)


def rewrite(
    source: str,
    model: str,
    num_classes: int,
    output: pathlib.Path,
    naming: str = "",
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> str:
    """Writes another program's weights of a model as `export` does, by our own names unless `naming` says others.

    A classifier of another number of classes is left out. `options` are the model's own. Raises RunError as `fill` and
    `export` do.
    """
    path = locate(source)
    contents = weights.inspect(path)
    given = build.model_options(options or {})
    try:
        abstract = nnx.eval_shape(
            lambda: models.create(model, num_classes=num_classes, rngs=seeded(default=0), **given)
        )
    except ValueError as error:
        raise RunError(f"--model: {error}") from error
    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(nnx.state(abstract, (nnx.Param, nnx.BatchStat))))
    expected = {_name(key): (leaf.shape, leaf.dtype) for key, leaf in leaves}
    values, report = _convert(contents.arrays, model, expected, str(path))
    facts = {"architecture": model, "options": given, "num_classes": num_classes, "source": source}
    return f"{contents}\n{report}\n{_write(values, facts, output, naming or OWN, dtype)}"


def _write(
    values: Mapping[str, np.ndarray], facts: Mapping[str, Any], output: pathlib.Path, naming: str, dtype: str
) -> str:
    if dtype not in _DTYPES:
        raise RunError(f"--dtype: '{dtype}' is not one of {', '.join(_DTYPES)}")
    name = facts["architecture"]
    arrays, used = _named(values, name, naming)
    arrays = _narrowed(arrays, dtype)
    facts = {**facts, "naming": used, "dtype": dtype}
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / _OUTPUT) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt", "histojax": json.dumps(facts)})
    write_json(output / "config.json", facts)
    return f"{len(arrays)} arrays of {name} by {used} names in {output / _OUTPUT}; {output / 'config.json'}"


def _narrowed(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The floating-point arrays in a type for files; raises RunError where a value is too large for it."""
    wide = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    with np.errstate(over="ignore"):  # told by name below
        narrow = {name: array.astype(_DTYPES[dtype]) for name, array in wide.items()}
    large = [name for name, array in narrow.items() if not np.isfinite(array.astype(np.float32)).all()]
    if large:
        listed = ", ".join(large[:8]) + (f" and {len(large) - 8} more" if len(large) > 8 else "")
        raise RunError(f"--dtype: values of {listed} are too large for {dtype}; take bfloat16 or float32")
    return {**arrays, **narrow}


def _named(values: Mapping[str, np.ndarray], model: str, naming: str) -> tuple[dict[str, np.ndarray], str]:
    table = weights.TABLES.get(model)
    titles = [known.title for known in table.namings] if table else []
    if naming and naming not in (*titles, OWN):
        raise RunError(f"--naming: {model} has no naming '{naming}'; there are {', '.join((*titles, OWN))}")
    for title in [naming] if naming else titles:
        if title == OWN or table is None:
            break
        try:
            return weights.export(values, table, title), title
        except weights.WeightsError:
            if naming:
                raise
    return {path.replace("/", "."): np.ascontiguousarray(value) for path, value in values.items()}, OWN


def _convert(
    arrays: Mapping[str, np.ndarray], model: str, expected: weights.Shapes, source: str
) -> tuple[dict[str, np.ndarray], str]:
    own = {name.replace(".", "/"): array for name, array in arrays.items()}
    if own.keys() <= expected.keys() and all(path.startswith(_HEAD) for path in expected.keys() - own.keys()):
        wrong = [path for path in own if own[path].shape != expected[path][0]]
        if not all(path.startswith(_HEAD) for path in wrong):
            shapes = ", ".join(f"{path} {own[path].shape}, here {expected[path][0]}" for path in wrong[:8])
            raise RunError(f"{source}: weights of {model} in another size ({shapes})")
        values = {path: np.asarray(own[path], expected[path][1]) for path in own if path not in wrong}
        return values, f"{model}: {len(values)} arrays loaded by {OWN} names"
    table = weights.TABLES.get(model)
    if table is None:
        raise RunError(f"model.pretrained: no names of other implementations are known for {model}")
    arrays, resampled = _fitting_positions(arrays, expected)
    values, report = weights.convert(arrays, table, expected, source=source)
    return values, f"{report}{resampled}"


def _fitting_positions(
    arrays: Mapping[str, np.ndarray], expected: weights.Shapes
) -> tuple[Mapping[str, np.ndarray], str]:
    """The arrays with a Vision Transformer's position embedding on the model's grid, and words for what was done.

    Files differ in how many tokens before the patches have positions: none, the class token, the registers, too. A
    position is added to its token, so it can as well be part of the token.
    """
    if "position_embedding" not in expected:
        return arrays, ""
    _, wanted, channels = expected["position_embedding"][0]
    registers = expected["registers"][0][0] if "registers" in expected else 0
    ours = 0 if registers else 1
    for name, array in arrays.items():
        suffix = next((suffix for suffix in _POSITIONS if name.endswith(suffix)), None)
        if suffix is None or array.ndim != 3 or array.shape[1] == wanted or array.shape[2] != channels:
            continue
        for theirs in (ours, 1, 0, 1 + registers):
            old = math.isqrt(max(array.shape[1] - theirs, 0))
            if old and old**2 == array.shape[1] - theirs:
                break
        else:
            continue
        new, table = math.isqrt(wanted - ours), array.astype(np.float32)
        words = f"\nposition embedding resampled from {old}×{old} to {new}×{new}" if old != new else ""
        replaced = {}
        if theirs < ours:
            table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
        elif theirs > ours:
            tokens = [name.removesuffix(suffix) + token for token in ("cls_token", "reg_token", "register_tokens")]
            tokens = [token for token in tokens if token in arrays]
            sizes = np.cumsum([arrays[token].shape[1] for token in tokens])
            for token, position in zip(tokens, np.split(table[:, :theirs], sizes, axis=1), strict=False):
                if position.shape[1]:
                    replaced[token] = arrays[token].astype(np.float32) + position
            table = table[:, theirs:]
        return {**arrays, **replaced, name: models.vit.resample_positions(table, (old, old), (new, new))}, words
    return arrays, ""


def _leaves(model: ModelState) -> list[tuple[str, Any]]:
    return [
        (_name(path), leaf)
        for tree in (model.params, model.stats)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _expected(model: ModelState) -> weights.Shapes:
    return {name: (leaf.shape, leaf.dtype) for name, leaf in _leaves(model)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
