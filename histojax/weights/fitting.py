"""Fitting the arrays of a file to the parameters of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from histojax import models
from histojax.core.errors import RunError
from histojax.models.vit import resample_positions
from histojax.weights.detection import Shapes
from histojax.weights.files import Contents
from histojax.weights.names import convert

OWN = "histojax"  # title of the naming of files that hold our own paths, with dots for slashes
_POSITIONS = ("pos_embed", "pos_embedding", "position_embeddings")
_TOKENS = ("cls_token", "reg_token", "register_tokens")


def fit(contents: Contents, model: str, expected: Shapes, prefix: str = "") -> tuple[dict[str, np.ndarray], str]:
    """Convert the arrays of a file to the parameters of a model.

    Args:
      contents: of the file, whose names are our own or those of a naming of the model.
      model: name of the model.
      expected: shape and type of every parameter and statistic of the model, by path.
      prefix: as for `files.inspect`: the keys to the state dict, if it was chosen by them, and the beginning of the
        names; empty: found by the names.

    Returns:
      Values by path, and a report for the user. A classifier for other classes is left out.

    Raises:
      RunError: weights of another model or size, or names that are not known.
    """
    spec, arrays, source = models.spec(model), contents.arrays, str(contents.path)
    begin = f"{prefix.rstrip('.')}.".removeprefix(f"{contents.wrapper}.").removeprefix(".")
    own = {name.replace(".", "/"): array for name, array in arrays.items()}
    is_own = not begin and own.keys() <= expected.keys()
    if is_own and all(path.startswith(spec.classifier) for path in expected.keys() - own.keys()):
        misshapen = [path for path in own if own[path].shape != expected[path][0]]
        if not all(path.startswith(spec.classifier) for path in misshapen):
            shapes = ", ".join(f"{path} {own[path].shape}, here {expected[path][0]}" for path in misshapen[:8])
            raise RunError(f"{source}: weights of {model} in another size ({shapes})")
        values = {path: np.asarray(own[path], expected[path][1]) for path in own if path not in misshapen}
        return values, f"{model}: {len(values)} arrays loaded by {OWN} names"
    if not spec.namings:
        raise RunError(f"model.pretrained: no names of other implementations are known for {model}")
    fitted, note = fit_positions(arrays, spec.position_embedding, expected, begin)
    values, report = convert(fitted, spec, expected, prefix=begin or None, source=source)
    return values, f"{report}{note}"


def fit_positions(
    arrays: Mapping[str, np.ndarray], path: str, expected: Shapes, prefix: str = ""
) -> tuple[Mapping[str, np.ndarray], str]:
    """Resample a Vision Transformer's position embedding in a file to the model's grid.

    Files differ in which tokens before the patches have positions: none, the class token, or the registers as well. A
    position is added to its token, so it can also be made part of the token.

    Args:
      arrays: by the file's names.
      path: path of the model's position embedding; empty if it has none.
      expected: shape and type of every parameter of the model, by path.
      prefix: beginning of the names of the network that is wanted.

    Returns:
      The arrays, and a note for the user: empty, or a line that names both grids.
    """
    if path not in expected:
        return arrays, ""
    _, expected_length, channels = expected[path][0]
    registers = expected["registers"][0][0] if "registers" in expected else 0
    ours = 0 if registers else 1
    for name, array in arrays.items():
        suffix = next((suffix for suffix in _POSITIONS if name.endswith(suffix)), None)
        if (
            suffix is None
            or not name.startswith(prefix)
            or array.ndim != 3
            or array.shape[1] == expected_length
            or array.shape[2] != channels
        ):
            continue
        for theirs in (ours, 1, 0, 1 + registers):
            old = math.isqrt(max(array.shape[1] - theirs, 0))
            if old and old**2 == array.shape[1] - theirs:
                break
        else:
            continue
        new, table = math.isqrt(expected_length - ours), array.astype(np.float32)
        note = f"\nposition embedding resampled from {old}×{old} to {new}×{new}" if old != new else ""
        tokens: dict[str, np.ndarray] = {}
        if theirs < ours:
            table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
        elif theirs > ours:
            tokens = _add_positions_to_tokens(arrays, name.removesuffix(suffix), table[:, :theirs])
            table = table[:, theirs:]
        return {**arrays, **tokens, name: resample_positions(table, (old, old), (new, new))}, note
    return arrays, ""


def _add_positions_to_tokens(
    arrays: Mapping[str, np.ndarray], prefix: str, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the tokens before the patches with their positions (1, tokens, c) added."""
    names = [prefix + token for token in _TOKENS if prefix + token in arrays]
    ends = np.cumsum([arrays[name].shape[1] for name in names])
    parts = zip(names, np.split(positions, ends, axis=1), strict=False)
    return {name: arrays[name].astype(np.float32) + part for name, part in parts if part.shape[1]}
