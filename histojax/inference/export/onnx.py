"""ONNX through jax2onnx, read back by onnxruntime."""

import json
import pathlib
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core as jex

from histojax.core.errors import RunError
from histojax.inference.export.function import INPUT, OUTPUT, Portable, Written, quiet

FILE = "model.onnx"
OPSET = 21
# Of the converter, about plugins for libraries that are not here, and about types that it infers.
_LOUD = ("jax2onnx", "onnx_ir")


def write(portable: Portable, folder: pathlib.Path) -> Written:
    """Writes `model.onnx`.

    Raises:
      RunError: the converter does not manage the model.
    """
    path = folder / FILE
    # Here, not at the top: the converter takes seconds to import, and is not everybody's.
    with quiet(*_LOUD), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jax2onnx
        import onnx
        import onnxruntime

        (batch,) = export.symbolic_shape("batch")
        struct = portable.struct(batch)
        traced = jax.make_jaxpr(portable.function())(struct)
        try:
            proto = jax2onnx.to_onnx(
                lambda images: _evaluate(traced.jaxpr, traced.consts, [images])[0],
                [struct],
                model_name=portable.architecture,
                opset=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            onnx.helper.set_model_props(proto, {"histojax": json.dumps(portable.facts())})
            onnx.checker.check_model(proto)
            onnx.save(proto, path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # a converter's gaps show themselves in many kinds
            first = (str(error).strip().splitlines() or [""])[0]
            raise RunError(
                f"--to onnx: jax2onnx {metadata.version('jax2onnx')} does not convert {portable.architecture} "
                f"({type(error).__name__}: {first}); --to stablehlo takes every model"
            ) from error

    def ask(images: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUT: portable.prepare(images)})[0]

    versions = {name: metadata.version(name) for name in ("jax", "flax", "jax2onnx", "onnx", "onnxruntime")}
    facts = {"file": FILE, "format": "ONNX", "opset": OPSET, "ir_version": proto.ir_version, "versions": versions}
    loading = f"""\
{portable.interface()}

Opset {OPSET}; compared with onnxruntime {versions["onnxruntime"]} on a CPU. Classes, thresholds and
normalisation are in its metadata, too (key `histojax`).

```python
import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession("{FILE}")
images = np.zeros({portable.struct(7).shape}, np.{struct.dtype})
(probabilities,) = model.run(["{OUTPUT}"], {{"{INPUT}": images}})
```
"""
    return Written(ask, loading, facts)


def _evaluate(jaxpr: jex.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Traces a program once more, as primitives of `jax.lax` alone and without `pad`.

    jax2onnx replaces functions such as `jax.nn.leaky_relu` by primitives of its own, not always with their arguments,
    and its `pad` wants a batch of fixed size. What was traced before meets the one, concatenation avoids the other.
    """
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        params = equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))  # of jit; of a function with a gradient of its own
        if isinstance(inner, jex.ClosedJaxpr):
            found = _evaluate(inner.jaxpr, inner.consts, given)
        elif equation.primitive is jax.lax.pad_p:
            found = [_pad(given[0], given[1], params["padding_config"])]
        else:
            found = equation.primitive.bind(*given, **params)
            found = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _pad(x: jax.Array, value: jax.Array, config: Sequence[tuple[int, int, int]]) -> jax.Array:
    for axis, (low, high, interior) in enumerate(config):
        if interior:
            raise NotImplementedError("padding between values")
        if low < 0 or high < 0:
            x = jax.lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        sides = [jnp.broadcast_to(value, (*x.shape[:axis], max(n, 0), *x.shape[axis + 1 :])) for n in (low, high)]
        parts = [part for part in (sides[0], x, sides[1]) if part.shape[axis] != 0]
        x = jax.lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x
