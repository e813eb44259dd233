"""torchvision's models, also beside a PyTorch that its compiled operators do not fit.

`import torchvision` registers shape rules for its operators `nms` and `qnms`, and fails where these do not exist: where
its binary was built for another PyTorch, as the one from PyPI is beside a PyTorch without CUDA. The classification
models use none of them, so it is enough to declare the two. Not before they are missed: a binary that fits declares
them itself, and twice is an error.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    _LIBRARY = torch.library.Library("torchvision", "DEF")  # kept, because the declarations end with this object
    for _operator in ("nms", "qnms"):
        _LIBRARY.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.models import swin_t
from torchvision.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torchvision.ops import StochasticDepth

__all__ = ["PatchMerging", "StochasticDepth", "SwinTransformerBlock", "swin_t"]
