"""Export to StableHLO through jax.export: one file for CPU, CUDA and TPU that needs jax but not histojax."""

import pathlib
from importlib import metadata

import jax
import numpy as np
from jax import export

from histojax.inference.export.exportable import ExportableModel, ExportedModel

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: ExportableModel, folder: pathlib.Path) -> ExportedModel:
    """Write `model.stablehlo` and read it back."""
    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(model.function()), platforms=PLATFORMS)(model.input_struct(batch))
    path = folder / FILE
    path.write_bytes(exported.serialize())
    read_back = export.deserialize(bytearray(path.read_bytes()))

    def predict(images: np.ndarray) -> np.ndarray:
        return np.asarray(read_back.call(model.prepare(images)))

    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    facts = {
        "file": FILE,
        "format": "jax.export: StableHLO with the weights, as a flatbuffer",
        "platforms": list(PLATFORMS),
        "calling_convention_version": exported.calling_convention_version,
        "versions": versions,
    }
    struct = model.input_struct(7)
    loading = f"""\
{model.interface()}

Needs `jax` {versions["jax"]} or newer, `flatbuffers` and numpy, but not histojax. Runs on {", ".join(PLATFORMS)}. GPUs
and TPUs multiply float32 less exactly by default (`jax.default_matmul_precision("highest")` changes that).

```python
import jax
import numpy as np

with open("{FILE}", "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
images = np.zeros({struct.shape}, np.{struct.dtype})
probabilities = np.asarray(model.call(images))
```
"""
    return ExportedModel(predict, loading, facts)
