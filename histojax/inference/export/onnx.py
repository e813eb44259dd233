"""Export to ONNX through jax2onnx; the file is read back by onnxruntime."""

import contextlib
import json
import logging
import pathlib
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax import export

from histojax.core.errors import RunError
from histojax.core.quiet import quiet_logger
from histojax.inference import compat
from histojax.inference.export.exportable import INPUT, OUTPUT, ExportableModel, ExportedModel

FILE = "model.onnx"
OPSET = 21


def write(model: ExportableModel, folder: pathlib.Path) -> ExportedModel:
    """Write `model.onnx` and read it back.

    Raises:
      RunError: the converter does not support the model.
    """
    import onnx
    import onnxruntime

    path = folder / FILE
    proto = convert(model, model.function(), OUTPUT)
    onnx.helper.set_model_props(proto, {"histojax": json.dumps(model.facts())})
    onnx.save(proto, path)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # what the converter wrote may not load, for reasons of many kinds
        raise _cannot_convert(model, error) from error

    def predict(images: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = session.run([OUTPUT], {INPUT: model.prepare(images)})[0]
        return probabilities

    versions = {name: metadata.version(name) for name in ("jax", "flax", "jax2onnx", "onnx", "onnxruntime")}
    facts = {"file": FILE, "format": "ONNX", "opset": OPSET, "ir_version": proto.ir_version, "versions": versions}
    return ExportedModel(predict, _loading(model, versions["onnxruntime"]), facts)


def convert(model: ExportableModel, function: Callable[[jax.Array], jax.Array], output: str) -> Any:
    """Return a function of the model's input as an ONNX model, with a batch of any size.

    Args:
      model: the model, for its input and its name.
      function: maps its input to an array `[b, …]`.
      output: the name of that array.

    Raises:
      RunError: the converter does not support the model.
    """
    with contextlib.ExitStack() as stack:
        for name in compat.CONVERTER_LOGGERS:
            stack.enter_context(quiet_logger(name, logging.CRITICAL + 1))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Imported here because the converter is optional and takes seconds to import.
        import jax2onnx
        import onnx

        (batch,) = export.symbolic_shape("batch")
        struct = model.input_struct(batch)
        traced = jax.make_jaxpr(function)(struct)
        try:
            proto = jax2onnx.to_onnx(
                lambda images: compat.retrace(traced.jaxpr, traced.consts, [images])[0],
                [struct],
                model_name=model.architecture,
                opset=OPSET,
                input_names=[INPUT],
                output_names=[output],
            )
            onnx.checker.check_model(proto)
        except Exception as error:  # gaps of the converter appear as exceptions of many kinds
            raise _cannot_convert(model, error) from error
    return proto


def _cannot_convert(model: ExportableModel, error: Exception) -> RunError:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return RunError(
        f"jax2onnx {metadata.version('jax2onnx')} cannot convert {model.architecture} "
        f"({type(error).__name__}: {first_line}); --to stablehlo works for every model"
    )


def _loading(model: ExportableModel, onnxruntime_version: str) -> str:
    struct = model.input_struct(7)
    return f"""\
{model.interface()}

Opset {OPSET}; compared with onnxruntime {onnxruntime_version} on a CPU. The metadata also contains classes, thresholds
and normalisation (key `histojax`).

```python
import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession("{FILE}")
images = np.zeros({struct.shape}, np.{struct.dtype})
(probabilities,) = model.run(["{OUTPUT}"], {{"{INPUT}": images}})
```
"""
