"""Write files with `torch.save`, and convert tensors to numpy."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import torch

FORMATS = ("zip", "legacy")


def save(path: pathlib.Path, content: Any, write: str = "zip") -> pathlib.Path:
    torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
    return path


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()
