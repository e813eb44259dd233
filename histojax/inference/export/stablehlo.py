"""StableHLO through jax.export: one file for CPU, CUDA and TPU that needs jax and nothing of ours."""

import pathlib
from importlib import metadata

import jax
import numpy as np
from jax import export

from histojax.inference.export.function import Portable, Written

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(portable: Portable, folder: pathlib.Path) -> Written:
    """Writes `model.stablehlo`."""
    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(portable.function()), platforms=PLATFORMS)(portable.struct(batch))
    path = folder / FILE
    path.write_bytes(exported.serialize())
    again = export.deserialize(bytearray(path.read_bytes()))

    def ask(images: np.ndarray) -> np.ndarray:
        return np.asarray(again.call(portable.prepare(images)))

    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    facts = {
        "file": FILE,
        "format": "jax.export: StableHLO with the weights, as a flatbuffer",
        "platforms": list(PLATFORMS),
        "calling_convention_version": exported.calling_convention_version,
        "versions": versions,
    }
    struct = portable.struct(7)
    loading = f"""\
{portable.interface()}

Needs `jax` {versions["jax"]} or newer, `flatbuffers` and numpy; no histojax. Runs on {", ".join(PLATFORMS)}. GPUs and
TPUs multiply float32 less exactly unless told otherwise (`jax.default_matmul_precision("highest")`).

```python
import jax
import numpy as np

with open("{FILE}", "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
images = np.zeros({struct.shape}, np.{struct.dtype})
probabilities = np.asarray(model.call(images))
```
"""
    return Written(ask, loading, facts)
