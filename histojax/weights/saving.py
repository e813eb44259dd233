"""Writing weights as safetensors, by our names or those of another implementation."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from histojax import models
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.core.printable import listed
from histojax.core.suggestions import did_you_mean
from histojax.models.cost import parameter_shapes
from histojax.weights.errors import WeightsError
from histojax.weights.files import inspect
from histojax.weights.fitting import OWN, fit
from histojax.weights.hub import SAFETENSORS, locate
from histojax.weights.names import export

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def save(
    values: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    output: pathlib.Path,
    naming: str = "",
    dtype: str = "float32",
) -> str:
    """Write a model as `model.safetensors` and `config.json`.

    Args:
      values: all parameters and statistics, by path.
      facts: contents of `config.json`; `architecture` is the model's name.
      output: folder, created if missing.
      naming: title of the parameter names in the file: one of the model's namings, or `histojax` for our paths with
        dots. Empty: the model's first naming that covers every parameter.
      dtype: type of the values in the file: float32, float16 or bfloat16.

    Returns:
      A line for the user that says what was written.

    Raises:
      RunError: an unknown type or naming, a naming without names for some parameters, or values too large for the type.
    """
    if dtype not in _DTYPES:
        raise RunError(f"--dtype: '{dtype}' is not one of {', '.join(_DTYPES)}")
    name = facts["architecture"]
    arrays, used = _rename(values, name, naming)
    arrays = cast_floats(arrays, dtype)
    facts = {**facts, "naming": used, "dtype": dtype}
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / SAFETENSORS) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt", "histojax": json.dumps(facts)})
    write_json(output / "config.json", facts)
    return f"{len(arrays)} arrays of {name} by {used} names in {output / SAFETENSORS}; {output / 'config.json'}"


def rewrite(
    source: str,
    model: str,
    num_classes: int,
    output: pathlib.Path,
    naming: str = "",
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> str:
    """Read another program's weights of a model and save them, by our own names by default; see `save`.

    Args:
      source: a file, or `hf:OWNER/NAME[@REVISION][/FILE]`.
      model: name of the model.
      num_classes: number of classes of the model; a classifier for another number is left out.
      output: folder, created if missing.
      naming: title of the parameter names in the new file.
      dtype: type of the values in the new file.
      options: options of the model.
      prefix: one of several networks in the file, as for `files.inspect`.

    Returns:
      Lines for the user that say what was read and what was written.

    Raises:
      RunError: an unknown model or option, no such file, a damaged file, weights of another model; or as in `save`.
    """
    path = locate(source)
    contents = inspect(path, prefix=prefix)
    given = dict(options or {})
    try:
        expected = parameter_shapes(model, num_classes, given)
    except ValueError as error:
        raise RunError(f"--model: {error}") from error
    values, report = fit(contents, model, expected, prefix)
    facts = {"architecture": model, "options": given, "num_classes": num_classes, "source": source}
    return f"{contents}\n{report}\n{save(values, facts, output, naming or OWN, dtype)}"


def cast_floats(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Convert float32 arrays to another floating-point type.

    Raises:
      RunError: a value is too large for the type.
    """
    wide = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    with np.errstate(over="ignore"):  # reported by name below
        narrow = {name: array.astype(_DTYPES[dtype]) for name, array in wide.items()}
    large = [name for name, array in narrow.items() if not np.isfinite(array.astype(np.float32)).all()]
    if large:
        raise RunError(f"--dtype: values of {listed(large, 8)} are too large for {dtype}; use bfloat16 or float32")
    return {**arrays, **narrow}


def _rename(values: Mapping[str, np.ndarray], model: str, naming: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays by the names of a naming, and its title."""
    spec = models.spec(model)
    titles = [known.title for known in spec.namings]
    if naming and naming not in (*titles, OWN):
        known = (*titles, OWN)
        raise RunError(
            f"--naming: {model} has no naming '{naming}'{did_you_mean(naming, known)}; known: {'; '.join(known)}"
        )
    for title in [naming] if naming else titles:
        if title == OWN:
            break
        try:
            return export(values, spec, title), title
        except WeightsError:
            if naming:
                raise
    return {path.replace("/", "."): np.ascontiguousarray(value) for path, value in values.items()}, OWN
