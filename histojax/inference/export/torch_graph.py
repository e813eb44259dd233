"""A model of an ONNX file as a PyTorch module, for the operators that our exported models have."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

# A node: function, names of its inputs, settings, names of its outputs.
_Step = tuple[Callable[..., Any], list[str], dict[str, Any], list[str]]


class Graph(torch.nn.Module):
    """The module: one float32 input, one output. What depends on constants only is computed once, here.

    Sizes are computed with tensors, so that a trace (`torch.jit.trace`) holds for batches of any size.

    Args:
      model: the ONNX model.

    Raises:
      ValueError: an operator that this module does not have.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        self._input, self._output = graph.input[0].name, graph.output[0].name
        arrays = {each.name: np.array(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
        constants = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._steps: list[_Step] = []
        for node in graph.node:
            if node.op_type not in _OPERATORS:
                raise ValueError(f"the ONNX operator {node.op_type} is not known here")
            settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            step = (_OPERATORS[node.op_type], list(node.input), settings, list(node.output))
            if all(not name or name in constants for name in node.input):
                constants |= _run(step, constants)
            else:
                self._steps.append(step)
        used = {name for _, inputs, _, _ in self._steps for name in inputs} | {self._output}
        self._constants = {name: f"constant_{i}" for i, name in enumerate(constants) if name in used}
        for name, attribute in self._constants.items():
            self.register_buffer(attribute, constants[name])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        values = {name: getattr(self, attribute) for name, attribute in self._constants.items()}
        values[self._input] = x
        for step in self._steps:
            values |= _run(step, values)
        return values[self._output]


def _run(step: _Step, values: dict[str, Tensor]) -> dict[str, Tensor]:
    function, inputs, settings, outputs = step
    result = function(*(values[name] if name else None for name in inputs), **settings)
    return dict(zip(outputs, result if isinstance(result, tuple) else (result,), strict=True))


def _sizes(shape: Tensor) -> list[Any]:
    """The elements of a shape as tensors, which a trace follows; integers would become constants."""
    return [shape[i] for i in range(shape.shape[0])]


def _axes(axes: Iterable[Any]) -> list[int]:
    return [int(axis) for axis in axes]


def _conv(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    **_: Any,
) -> Tensor:
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(padded, kernel, bias, tuple(strides), 0, tuple(dilations), group)


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, **settings: float) -> Tensor:
    left, right = a.t() if settings.get("transA") else a, b.t() if settings.get("transB") else b
    product = settings.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + settings.get("beta", 1.0) * c


def _div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return torch.broadcast_tensors(x, torch.empty(1, dtype=x.dtype).expand(_sizes(shape)))[0]


def _gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    axis %= x.ndim
    flat = indices.reshape(-1)
    taken = torch.index_select(x, axis, torch.where(flat >= 0, flat, flat + x.size(axis)))
    if indices.ndim == 0:
        return taken.squeeze(axis)
    return taken if indices.ndim == 1 else taken.unflatten(axis, tuple(indices.shape))


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise ValueError("GatherND with batch_dims is not known here")
    return x[indices.unbind(-1)]


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count: Any = torch.div(limit - start + delta - 1, delta, rounding_mode="floor")
    # torch.arange would make the numbers constants of a trace.
    return start + delta * (torch.ones([count], dtype=start.dtype).cumsum(0) - 1)


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    for n, axis in enumerate(range(len(starts)) if axes is None else _axes(axes)):
        step = 1 if steps is None else int(steps[n])
        index: list[Any] = [slice(None)] * x.ndim
        if step < 0:
            raise ValueError("Slice with a negative step is not known here")
        index[axis] = slice(starts[n], ends[n], step)
        x = x[tuple(index)]
    return x


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    return functools.reduce(lambda y, axis: y.unsqueeze(axis), sorted(axis % rank for axis in _axes(axes)), x)


def _over_axes(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Tensor | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        del noop_with_empty_axes  # the axes are always stated
        return function(x, list(range(x.ndim)) if axes is None else _axes(axes), bool(keepdims))

    return reduce


_TYPES = {
    getattr(onnx.TensorProto, name): kind
    for name, kind in (
        ("FLOAT", torch.float32), ("FLOAT16", torch.float16), ("DOUBLE", torch.float64), ("BOOL", torch.bool),
        ("INT8", torch.int8), ("UINT8", torch.uint8), ("INT32", torch.int32), ("INT64", torch.int64),
    )
}  # fmt: skip
_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Cast": lambda x, to, saturate=1: x.to(_TYPES[to]),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "Div": _div,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x,
    "MatMul": torch.matmul,
    "Max": lambda *parts: functools.reduce(torch.maximum, parts),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Range": _range,
    "ReduceMax": _over_axes(torch.amax),
    "ReduceSum": _over_axes(torch.sum),
    "ReduceSumSquare": _over_axes(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
    "Reshape": lambda x, shape, allowzero=0: x.reshape(_sizes(shape)),
    "Shape": lambda x, start=0, end=None: torch._shape_as_tensor(x)[start:end],
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Split": lambda x, sizes, axis=0: torch.split(x, _axes(sizes), axis),
    "Sqrt": torch.sqrt,
    "Squeeze": lambda x, axes: x.squeeze(tuple(_axes(axes))),
    "Sub": torch.sub,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
}
