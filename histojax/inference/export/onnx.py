"""Export to ONNX through jax2onnx; the file is read back by onnxruntime."""

import contextlib
import json
import logging
import pathlib
import warnings
from importlib import metadata

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
    path = folder / FILE
    with contextlib.ExitStack() as stack:
        for name in compat.CONVERTER_LOGGERS:
            stack.enter_context(quiet_logger(name, logging.CRITICAL + 1))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Imported here because the converter is optional and takes seconds to import.
        import jax2onnx
        import onnx
        import onnxruntime

        (batch,) = export.symbolic_shape("batch")
        struct = model.input_struct(batch)
        traced = jax.make_jaxpr(model.function())(struct)
        try:
            proto = jax2onnx.to_onnx(
                lambda images: compat.retrace(traced.jaxpr, traced.consts, [images])[0],
                [struct],
                model_name=model.architecture,
                opset=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            onnx.helper.set_model_props(proto, {"histojax": json.dumps(model.facts())})
            onnx.checker.check_model(proto)
            onnx.save(proto, path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # gaps of the converter appear as exceptions of many kinds
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise RunError(
                f"--to onnx: jax2onnx {metadata.version('jax2onnx')} cannot convert {model.architecture} "
                f"({type(error).__name__}: {first_line}); --to stablehlo works for every model"
            ) from error

    def predict(images: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = session.run([OUTPUT], {INPUT: model.prepare(images)})[0]
        return probabilities

    versions = {name: metadata.version(name) for name in ("jax", "flax", "jax2onnx", "onnx", "onnxruntime")}
    facts = {"file": FILE, "format": "ONNX", "opset": OPSET, "ir_version": proto.ir_version, "versions": versions}
    return ExportedModel(predict, _loading(model, versions["onnxruntime"]), facts)


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
