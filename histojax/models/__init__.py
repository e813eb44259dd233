"""The models by name. This room imports jax, flax and numpy only."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from histojax.models import swin, vit
from histojax.models.dala_resnet import dala_resnet50
from histojax.models.densenet import densenet121
from histojax.models.ldcsf import ldcsf
from histojax.models.resnet import resnet50
from histojax.models.seresnet import seresnet50
from histojax.models.vgg import vgg16, vgg16_bn, vgg16_inception

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "resnet50": resnet50,
    "dala_resnet50": dala_resnet50,
    "seresnet50": seresnet50,
    "densenet121": densenet121,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "vgg16_inception": vgg16_inception,
    "vit_base_patch16_224": vit.vit_base_patch16_224,
    "swin_tiny_patch4_window7_224": swin.swin_tiny_patch4_window7_224,
    "dinov2_vitb14": vit.dinov2_vitb14,
    "vit": vit.vit,
    "ldcsf": ldcsf,
}

_SMALLEST = 32
_IN_WINDOWS = ("swin_tiny_patch4_window7_224", "ldcsf")
_PATCHES = {"vit_base_patch16_224": 16, "vit": 16, "dinov2_vitb14": 14}

_COMMON = ("num_classes", "rngs", "dtype", "remat")


def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    remat: bool = False,
    **options: Any,
) -> nnx.Module:
    """Build the model `name`, which maps images (b, h, w, 3) to float32 logits (b, num_classes).

    `options` are the model's own: the keyword arguments of its builder in `MODELS` beyond the four here.
    Raises ValueError for an unknown name, an unknown option or an illegal value, naming the legal ones.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{_hint(name, MODELS)}; models: {', '.join(MODELS)}")
    builder = MODELS[name]
    legal = [option for option in inspect.signature(builder).parameters if option not in _COMMON]
    for option in options:
        if option not in legal:
            listed = ", ".join(legal) or "none"
            raise ValueError(f"unknown option {option!r} of {name}{_hint(option, legal)}; options: {listed}")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is not a positive number")
    # Configs read back from JSON have lists where the models take tuples.
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return builder(num_classes=num_classes, rngs=rngs, dtype=dtype, remat=remat, **options)


def check_image_size(name: str, size: int, options: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError, saying which sizes work, where the model `name` with `options` takes no images of size × size.

    What a model would say itself once it is called, said before anything is built. Of a name that is not in `MODELS`
    nothing is said: `create` does that.
    """
    if name in _IN_WINDOWS:
        swin.check_image_size(size)
    elif name in _PATCHES:
        vit.check_image_size((options or {}).get("patch", _PATCHES[name]), size)
    elif name in MODELS and size < _SMALLEST:
        raise ValueError(f"image height and width must be at least {_SMALLEST}, not {size}")


def _hint(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
