"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) for every model: where in an image a model saw a class.

The channels of a feature map A are weighted by the mean gradient of the class's logit y with respect to them, summed,
and only positive evidence is kept: relu(Σ_c α_c A_c), α_c = mean over positions of ∂y/∂A_c (equations 1 and 2).
"""

import functools
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from histojax import models
from histojax.core.errors import RunError
from histojax.models.ops.intermediates import listening
from histojax.training.loading import LoadedModel
from histojax.training.state import ModelState

Logits = Callable[[jax.Array], jax.Array]


def feature_map_shapes(logits: Logits, images: jax.Array | jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape [b, h, w, c] and type of each feature map by name, in the order of the forward pass.

    Args:
      logits: images -> logits [b, k], by a model of `histojax.models`.
      images: as `logits` takes them, or their shape and type.
    """
    names: list[str] = []

    def feature_maps(images: jax.Array) -> tuple[jax.Array, ...]:
        with listening() as maps:
            logits(images)
        names.extend(maps)  # not returned as a dict, which jax would sort
        return tuple(maps.values())

    shapes = jax.eval_shape(feature_maps, images)
    return dict(zip(names, shapes, strict=True))


def grad_cam(logits: Logits, images: jax.Array, targets: jax.Array, layer: str) -> jax.Array:
    """Compute Grad-CAM maps.

    Args:
      logits: images -> logits [b, k], by a model of `histojax.models`; an image's logits depend only on that image.
      images: as `logits` takes them, [b, ...].
      targets: i32 [b], the class to explain in each image.
      layer: name of a feature map of the model.

    Returns:
      Maps `f32 [b, h, w]`, at least 0, of the size of the feature map.

    Raises:
      KeyError: the model has no such feature map.
    """

    def target_logits(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sum the target logits when `offset` is added to the feature map; also return the feature map."""
        with listening({layer: offset}) as maps:
            scores = logits(images)
        return jnp.take_along_axis(scores, targets[:, None], axis=1).sum(), maps[layer]

    shape = feature_map_shapes(logits, images)[layer]
    gradients, maps = jax.grad(target_logits, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    weights = gradients.astype(jnp.float32).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", maps.astype(jnp.float32), weights))


class GradCAM:
    """Grad-CAM of a trained model, as one compiled program for any number of images.

    Attributes:
      layers: height and width of each feature map of the model, by name, in the order of the forward pass.
      layer: name of the feature map that is explained.
    """

    def __init__(self, trained: LoadedModel, batch_size: int, layer: str = ""):
        """Choose the feature map.

        Args:
          trained: the model.
          batch_size: images per batch; must be divisible by the number of devices.
          layer: name of a feature map; empty: the default of the model's specification.

        Raises:
          RunError: the model has no such feature map; the message lists those that it has.
        """
        self._trained, self._batch_size = trained, batch_size
        size = trained.config.data.image_size
        images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
        shapes = feature_map_shapes(functools.partial(trained.program.logits, trained.model), images)
        self.layers: dict[str, tuple[int, int]] = {name: shape.shape[1:3] for name, shape in shapes.items()}
        self.layer = layer or models.spec(trained.config.model.name).default_layer(self.layers)
        if self.layer not in self.layers:
            known = ", ".join(f"{name} ({h}×{w})" for name, (h, w) in self.layers.items())
            raise RunError(
                f"--layer={layer}: {trained.config.model.name} has no such feature map; choose one of {known}"
            )
        self._jit = jax.jit(self._maps, out_shardings=trained.layout.replicated)

    def maps(self, images: np.ndarray, targets: np.ndarray, model: ModelState | None = None) -> np.ndarray:
        """Compute Grad-CAM maps of images.

        Args:
          images: `u8 [n, s, s, 3]`, of the model's input size.
          targets: `i32 [n]`, the class to explain in each image.
          model: other values of the model's parameters; None: the trained ones.

        Returns:
          Maps `f32 [n, h, w]`, of the size of the feature map.
        """
        maps, size = [], self._batch_size
        for start in range(0, len(images), size):
            batch = {
                "image": images[start : start + size],
                "target": np.asarray(targets[start : start + size], np.int32),
            }
            n = len(batch["image"])
            padded = {key: np.concatenate([value, np.zeros((size - n, *value.shape[1:]), value.dtype)])
                      for key, value in batch.items()}  # fmt: skip
            on_device = self._trained.layout.to_device(padded)
            result = self._jit(model or self._trained.model, on_device["image"], on_device["target"])
            maps.append(np.asarray(result)[:n])
        return np.concatenate(maps) if maps else np.zeros((0, *self.layers[self.layer]), np.float32)

    def _maps(self, model: ModelState, images: jax.Array, targets: jax.Array) -> jax.Array:
        return grad_cam(functools.partial(self._trained.program.logits, model), images, targets, self.layer)


def upsample(cam: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a map [h, w] to an image by linear interpolation, and scale it to a maximum of 1; f32 [height, width].

    Each position of the map covers one cell of the image, since resizing to the model's input ignores the aspect ratio.
    A map that is zero everywhere stays zero.
    """
    values = cv2.resize(cam.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    peak = values.max()  # may be less than the map's peak: no pixel centre need lie on a position of the map
    return values / peak if peak > 0 else values
