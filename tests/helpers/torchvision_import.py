"""torchvision's models, importable even if torchvision's binary does not match the installed PyTorch.

`import torchvision` registers shape rules for its operators `nms` and `qnms`. It fails if these operators do not exist,
for example with the binary from PyPI and a PyTorch without CUDA. The classification models use neither, so declaring
the two operators is enough. They are declared only after a failed import: a matching binary declares them itself, and
a second declaration is an error.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    _LIBRARY = torch.library.Library("torchvision", "DEF")  # the declarations last as long as this object
    for _operator in ("nms", "qnms"):
        _LIBRARY.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.models import swin_t
from torchvision.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torchvision.ops import StochasticDepth

__all__ = ["PatchMerging", "StochasticDepth", "SwinTransformerBlock", "swin_t"]
