"""Weights in an ONNX file: its initialisers, by the names that the model's parameters had before the export.

PyTorch's exporter keeps the names of most parameters. It renames those that it transposes or slices before it writes
them, such as `onnx::MatMul_1966`; the module that they belonged to follows from the nodes that use them.
"""

from __future__ import annotations

import pathlib
import re
from collections import defaultdict
from typing import Any

import numpy as np

from histojax.core import extras
from histojax.weights.errors import Problem, short

_RENAMED = re.compile(r"onnx::\w+_\d+")
_MODULE_INPUTS = {"MatMul": ".weight"}  # operator -> name of its renamed, transposed parameter


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read the initialisers of an ONNX file; its graph is not run.

    Args:
      path: the file.

    Returns:
      Arrays by the model's names, in PyTorch's layout, and the names of renamed initialisers that belong to no
      parameter.

    Raises:
      RunError: the package onnx is not installed.
      Problem: the file is damaged, stores its tensors in another file, or was exported without the parameters.
    """
    extras.require("export", f"{path}: reading an ONNX file")
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf raises errors of its own
        raise Problem(f"it is cut short, damaged or no ONNX file ({short(str(error))})") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise Problem(
            "its tensors lie in another file",
            "Write one file: python -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'whole.onnx')\"",
        )
    try:
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except (ValueError, TypeError) as error:
        raise Problem(f"it is damaged: a tensor cannot be read ({short(str(error))})") from error
    return _by_parameter(arrays, graph)


def _by_parameter(arrays: dict[str, np.ndarray], graph: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Give renamed initialisers the names of their parameters."""
    renamed = {name for name in arrays if _RENAMED.fullmatch(name)}
    found = {name: array for name, array in arrays.items() if name not in renamed}
    tokens: dict[str, list[str]] = defaultdict(list)
    folded = False
    for node in graph.node:
        module = ".".join(node.name.strip("/").split("/")[:-1])
        for name in renamed.intersection(node.input):
            if node.op_type in _MODULE_INPUTS and module and arrays[name].ndim == 2:
                found[module + _MODULE_INPUTS[node.op_type]] = arrays[name].T
            elif module.endswith("embeddings") and arrays[name].ndim == 3:
                tokens[module].append(name)
            folded |= node.op_type == "Conv"
    for module, names in tokens.items():
        # The exporter slices the position embedding of Hugging Face's DINOv2 into the class token's row and the rest.
        names.sort(key=lambda name: arrays[name].shape[1])
        if [arrays[name].shape[1] == 1 for name in names] == [True, False]:
            found[f"{module}.position_embeddings"] = np.concatenate([arrays[name] for name in names], axis=1)
            renamed -= set(names)
    if folded:
        raise Problem(
            "its batch norms were folded into the convolutions before it was written, so the parameters are lost",
            "Use the file of weights that it was exported from, or export it again with training=TrainingMode.PRESERVE",
        )
    used = {name for node in graph.node if node.op_type in _MODULE_INPUTS for name in node.input}
    return found, tuple(sorted(renamed - used))
