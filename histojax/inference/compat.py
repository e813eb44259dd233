"""Workarounds for unstable interfaces of libraries, in one place so that an upgrade breaks here and nowhere else.

* `jax.extend.core`, the structure of a jaxpr: `retrace` walks it. Checked with the version in `pyproject.toml`.
* jax2onnx: which primitives it converts, and the names of its loggers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

# jax2onnx logs about plugins for libraries that are not installed, onnx_ir about types that it infers.
CONVERTER_LOGGERS = ("jax2onnx", "onnx_ir")


def retrace(jaxpr: jex.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a traced program with primitives of `jax.lax` only, and without `pad`, so that jax2onnx can convert it.

    jax2onnx replaces functions such as `jax.nn.leaky_relu` by its own primitives while it traces, and loses some of
    their arguments. Evaluating a program that was traced before avoids that. Its `pad` needs a batch of fixed size;
    concatenation does not.

    Args:
      jaxpr: the traced program.
      constants: values of its constants.
      arguments: values of its inputs; may be tracers.

    Returns:
      The values of its outputs.

    Raises:
      NotImplementedError: the program pads between values.
    """
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        params = equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))  # of jit; of a function with a custom gradient
        if isinstance(inner, jex.ClosedJaxpr):
            outputs = retrace(inner.jaxpr, inner.consts, inputs)
        elif equation.primitive is jax.lax.pad_p:
            outputs = [_pad(inputs[0], inputs[1], params["padding_config"])]
        else:
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _pad(x: jax.Array, value: jax.Array, config: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Pad like `jax.lax.pad`, by concatenation and slicing."""
    for axis, (low, high, interior) in enumerate(config):
        if interior:
            raise NotImplementedError("padding between values")
        if low < 0 or high < 0:
            x = jax.lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        sides = [jnp.broadcast_to(value, (*x.shape[:axis], max(n, 0), *x.shape[axis + 1 :])) for n in (low, high)]
        parts = [part for part in (sides[0], x, sides[1]) if part.shape[axis] != 0]
        x = jax.lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x
