"""The registry of models: `ModelSpec` holds everything that the rest of the program needs to know about one model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from flax import nnx

from histojax.core.plugins import Registry
from histojax.core.suggestions import did_you_mean
from histojax.models.naming.rules import Naming
from histojax.models.ops.image_size import SMALLEST, check_at_least


def _at_least_32(size: int, config: Any) -> None:
    del config
    check_at_least(SMALLEST, size)


@dataclass(frozen=True, eq=False)
class TimmModel:
    """The timm model that computes the same function, for exports to Hugging Face.

    Attributes:
      name: timm's name of the model.
      first_conv: timm's name of the first convolution.
      classifier: timm's name of the last layer.
      fixed_size: whether timm builds the model for one image size (`img_size`).
      arguments: our option -> keyword of timm's builder, for options that timm's model also has.
      fits: (image size, config) -> whether both compute the same function at that size.
      sizes: completes "the same function only …" in the message when `fits` is false.
    """

    name: str
    first_conv: str
    classifier: str
    fixed_size: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)
    fits: Callable[[int, Any], bool] = lambda size, config: True
    sizes: str = ""


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """One model: how it is built, and what training, weights, explanation, export and the tests need to know about it.

    Attributes:
      name: value of `config.model.name`.
      builder: `builder(config, *, num_classes, rngs, dtype, remat)` returns the module, which maps images (b, h, w, 3)
        to float32 logits (b, num_classes), has `feature_maps(images)`, and passes each of its maps through
        `ops.intermediates.tap`. Usually the class itself.
      config: frozen dataclass instance with the published sizes. Its fields are the model's options
        (`config.model.options`); it raises ValueError for an illegal value.
      check_image_size: `check_image_size(size, config)` raises ValueError, naming legal sizes, if the model does not
        accept images of size × size.
      head_parts: path components of the parts that a paper adds to its backbone. Their parameters form the optimizer's
        head group; all others form the backbone's.
      without_weight_decay: path components of tables (position embeddings, registers) that weight decay must not
        shrink. Biases and norms, which have one axis, are never decayed.
      position_embedding: path of a table (1, tokens + h·w, c) of absolute positions, which is resampled when a file of
        weights was trained at another grid; empty: the model has none.
      drop_options: options that only act during training, such as dropout rates.
      grad_cam_layer: feature map that Grad-CAM explains: its name, or its index in the order of the forward pass.
      namings: names that other implementations give to the parameters, in the order in which an export tries them.
      classifier: prefix of the classifier's paths.
      new_parts: regular expressions, matched from the start, for paths that no public file has. They keep their
        initial values.
      ignores_later_stages: whether public files hold later stages, which this model does not have.
      timm: the equal model of timm, if there is one.
      compared_with: reference implementation of the tests in tests/parity.
      small: options that make a model of the same parts which compiles in seconds on 32×32 images, for tests.
    """

    name: str
    builder: Callable[..., Any]
    config: Any
    check_image_size: Callable[[int, Any], None] = _at_least_32
    head_parts: tuple[str, ...] = ("head",)
    without_weight_decay: tuple[str, ...] = ()
    position_embedding: str = ""
    drop_options: tuple[str, ...] = ()
    grad_cam_layer: str | int = -1
    namings: tuple[Naming, ...] = ()
    classifier: str = "head/"
    new_parts: tuple[str, ...] = ()
    ignores_later_stages: bool = False
    timm: TimmModel | None = None
    compared_with: str = "-"
    small: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the model's options."""
        return tuple(f.name for f in dataclasses.fields(self.config))

    def configure(self, options: Mapping[str, Any]) -> Any:
        """Return the config with these options.

        Raises:
          ValueError: an unknown option or an illegal value; the message names the legal ones.
        """
        for option in options:
            if option not in self.options:
                listed = ", ".join(self.options) or "none"
                hint = did_you_mean(option, self.options)
                raise ValueError(f"unknown option {option!r} of {self.name}{hint}; options: {listed}")
        return dataclasses.replace(self.config, **{name: _as_tuples(value) for name, value in options.items()})

    def is_new(self, path: str) -> bool:
        """Whether no public file of weights has this parameter."""
        return any(re.match(pattern, path) for pattern in self.new_parts)

    def default_layer(self, layers: Iterable[str]) -> str:
        """Return the name of the feature map that Grad-CAM explains, given all names in forward order."""
        if isinstance(self.grad_cam_layer, str):
            return self.grad_cam_layer
        names = list(layers)
        return names[max(self.grad_cam_layer, -len(names))]


MODELS = Registry(ModelSpec, "model", "histojax.models")
register, names, spec = MODELS.register, MODELS.names, MODELS.find


def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    remat: bool = False,
    **options: Any,
) -> Any:
    """Build a model that maps images (b, h, w, 3) to float32 logits (b, num_classes).

    Args:
      name: a name in `names()`.
      num_classes: width of the logits.
      rngs: random keys for the initial parameters (`params`) and dropout (`dropout`).
      dtype: type of the computation; parameters are float32.
      remat: recompute activations in the backward pass to save memory.
      **options: fields of the model's config dataclass.

    Returns:
      The model, an `nnx.Module`.

    Raises:
      ValueError: an unknown name or option, or an illegal value; the message names the legal ones.
    """
    found = spec(name)
    config = found.configure(options)
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is not a positive number")
    return found.builder(config, num_classes=num_classes, rngs=rngs, dtype=dtype, remat=remat)


def check_image_size(name: str, size: int, options: Mapping[str, Any] | None = None) -> None:
    """Check before anything is built that a model accepts images of size × size.

    Raises:
      ValueError: it does not; the message names legal sizes. Or an unknown name or option.
    """
    found = spec(name)
    found.check_image_size(size, found.configure(options or {}))


def _as_tuples(value: Any) -> Any:
    """Turn lists, which configs read back from JSON have, into the tuples that models take."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
