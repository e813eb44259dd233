"""Export to TorchScript, which WSInfer and QuPath's WSInfer extension run, through the model's ONNX program."""

import pathlib
import warnings
from importlib import metadata
from typing import Any

import numpy as np

from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.inference.export import hub, onnx
from histojax.inference.export.exportable import ExportableModel, ExportedModel

_OUTPUT = "logits"


def write(model: ExportableModel, folder: pathlib.Path, tile_um: float | None) -> ExportedModel:
    """Write `torchscript_model.pt`, and `config.json` of WSInfer where it can use the model; read the program back.

    Args:
      model: a model whose input are normalised images.
      folder: folder to write to.
      tile_um: side of an image in µm; None: from the checkpoint.

    Raises:
      RunError: the model cannot be converted, or `tile_um` is not positive and finite.
    """
    import torch

    from histojax.inference.export.torch_graph import Graph

    size, path = model.predictor.image_size, folder / hub.TORCHSCRIPT
    config, obstacle = hub.wsinfer(model, tile_um)
    program = onnx.convert(model, model.function(logits=True), _OUTPUT)

    class ChannelsFirst(torch.nn.Module):
        """The program for images in PyTorch's layout."""

        def __init__(self) -> None:
            super().__init__()
            self.graph = Graph(program)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.graph(images.permute(0, 2, 3, 1))

    with warnings.catch_warnings(), torch.inference_mode():
        # Of traces: axes become constants, as they should; and that torch.export is newer, which WSInfer cannot read.
        warnings.simplefilter("ignore")
        try:
            module = ChannelsFirst().eval()
        except ValueError as error:
            raise RunError(f"--to torchscript: {model.architecture}: {error}; --to onnx works") from error
        torch.jit.trace(module, torch.zeros(2, 3, size, size), check_trace=False).save(str(path))
        read_back = torch.jit.load(str(path))

    several_labels = model.predictor.thresholds is not None

    def predict(images: np.ndarray) -> np.ndarray:
        prepared = torch.from_numpy(np.ascontiguousarray(model.prepare(images).transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            logits = read_back(prepared)
            scores: np.ndarray = (logits.sigmoid() if several_labels else logits.softmax(-1)).numpy()
        return scores

    if config:
        described = {"architecture": model.architecture, "num_classes": len(model.predictor.classes)}
        write_json(folder / hub.CONFIG, described | config)
    versions = {name: metadata.version(name) for name in ("jax", "flax", "jax2onnx", "onnx", "torch")}
    facts: dict[str, Any] = {"file": path.name, "format": "TorchScript", "versions": versions}
    facts |= {
        "input": {"shape": ["batch", 3, size, size], "type": "float32", "holds": "RGB, (value / 255 - mean) / std"},
        "output": {"name": _OUTPUT, "shape": ["batch", len(model.predictor.classes)], "type": "float32"},
    }
    return ExportedModel(predict, _loading(model, obstacle, versions["torch"]), facts)


def _loading(model: ExportableModel, obstacle: str, torch_version: str) -> str:
    size, data = model.predictor.image_size, model.predictor.trained.config.data
    rule = "sigmoid()" if model.predictor.thresholds is not None else "softmax(-1)"
    text = f"""\
Input: float32 of shape (batch, 3, {size}, {size}), RGB in 0 to 1, minus the mean {tuple(data.mean)}, divided by
{tuple(data.std)}. Output: logits of shape (batch, {len(model.predictor.classes)}). The batch may have any size.
Compared with PyTorch {torch_version} on a CPU.

```python
import torch

model = torch.jit.load("{hub.TORCHSCRIPT}")
with torch.inference_mode():
    probabilities = model(torch.zeros(7, 3, {size}, {size})).{rule}
```

"""
    if obstacle:
        return f"{text}Not for WSInfer: {obstacle}.\n"
    return f"""\
{text}`{hub.CONFIG}` is WSInfer's (spec_version {hub.WSINFER}). `wsinfer run` takes both files,
and QuPath's WSInfer extension takes the folder as a model of its user.
"""
