"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of every model: where in an image a class was seen.

A map weights the channels of a feature map by the mean gradient of the class's logit with respect to them, sums, and
keeps what speaks for the class: relu(Σ_c α_c A_c), α_c = mean over positions of ∂y/∂A_c (equations 1 and 2).
"""

import functools
from collections.abc import Callable, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from histojax.core.errors import RunError
from histojax.models.ops.intermediates import listening
from histojax.training.evaluate import LoadedModel
from histojax.training.step import ModelState

Logits = Callable[[jax.Array], jax.Array]

_VITS = ("vit", "vit_base_patch16_224", "dinov2_vitb14")
_VGGS = ("vgg16", "vgg16_bn")


def default_layer(model: str, layers: Sequence[str]) -> str:
    """Of the feature maps of a model, in the order of the forward pass, the one that Grad-CAM is of.

    The last one, as the paper has it, but
    * of VGG the last convolution's output (`conv5`, the paper's own), which is twice as fine as `pool5`;
    * of a Vision Transformer the positions that enter the last block: after it the class token alone goes on to the
      logits, and the gradient with respect to every other position is zero.
    """
    if model in _VGGS:
        return "conv5"
    return layers[-2] if model in _VITS and len(layers) > 1 else layers[-1]


def layers_of(logits: Logits, images: jax.Array | jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape [b, h, w, c] and type of each feature map between images and `logits` of them, by name, in order."""
    names: list[str] = []

    def heard(images: jax.Array) -> tuple[jax.Array, ...]:
        with listening() as maps:
            logits(images)
        names.extend(maps)  # beside the result: jax would sort a dict
        return tuple(maps.values())

    shapes = jax.eval_shape(heard, images)
    return dict(zip(names, shapes, strict=True))


def grad_cam(logits: Logits, images: jax.Array, targets: jax.Array, layer: str) -> jax.Array:
    """Maps `f32 [b, h, w]`, at least 0, of the size of the feature map.

    Args:
      logits: images -> logits [b, k], by a model of `histojax.models`; no image's depend on another image.
      images: as `logits` takes them, [b, ...].
      targets: i32 [b], the class of each image that is asked about.
      layer: name of a feature map of the model.
    """

    def asked(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        with listening({layer: change}) as heard:
            scores = logits(images)
        return jnp.take_along_axis(scores, targets[:, None], axis=1).sum(), heard[layer]

    shape = layers_of(logits, images)[layer]
    slopes, maps = jax.grad(asked, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    weights = slopes.astype(jnp.float32).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", maps.astype(jnp.float32), weights))


class GradCAM:
    """Grad-CAM of a trained model, one compiled program whatever the number of images.

    Attributes:
      layers: height and width of each of the model's feature maps, by name, in the order of the forward pass.
      layer: the one that the maps are of.
    """

    def __init__(self, trained: LoadedModel, batch_size: int, layer: str = ""):
        """`layer`: the name of a feature map; empty: `default_layer`.

        Raises:
          RunError: the model has no such feature map; names those that it has.
        """
        self._trained, self._batch_size = trained, batch_size
        size = trained.config.data.image_size
        shape = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
        shapes = layers_of(functools.partial(trained.program.logits, trained.model), shape)
        self.layers: dict[str, tuple[int, int]] = {name: found.shape[1:3] for name, found in shapes.items()}
        self.layer = layer or default_layer(trained.config.model.name, list(self.layers))
        if self.layer not in self.layers:
            known = ", ".join(f"{name} ({h}×{w})" for name, (h, w) in self.layers.items())
            raise RunError(f"--layer={layer}: {trained.config.model.name} has no such feature map; there are {known}")
        self._jit = jax.jit(self._maps, out_shardings=trained.layout.replicated)

    def maps(self, images: np.ndarray, targets: np.ndarray, model: ModelState | None = None) -> np.ndarray:
        """Maps `f32 [n, h, w]` of images `u8 [n, s, s, 3]` for the classes `i32 [n]`, of the size of the feature map.

        `model`: other values of the model's parameters; None: the trained ones.
        """
        found, size = [], self._batch_size
        for start in range(0, len(images), size):
            batch = {
                "image": images[start : start + size],
                "target": np.asarray(targets[start : start + size], np.int32),
            }
            n = len(batch["image"])
            batch = {key: np.concatenate([value, np.zeros((size - n, *value.shape[1:]), value.dtype)])
                     for key, value in batch.items()}  # fmt: skip
            put = self._trained.layout.to_device(batch)
            found.append(np.asarray(self._jit(model or self._trained.model, put["image"], put["target"]))[:n])
        return np.concatenate(found) if found else np.zeros((0, *self.layers[self.layer]), np.float32)

    def _maps(self, model: ModelState, images: jax.Array, targets: jax.Array) -> jax.Array:
        return grad_cam(functools.partial(self._trained.program.logits, model), images, targets, self.layer)


def upsample(cam: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map [h, w] over an image: f32 [height, width], between positions interpolated linearly, 1 where it is greatest.

    A position of the map stands for a cell of the image, as the resizing to the model's input ignores the aspect ratio.
    A map that is zero everywhere stays so.
    """
    values = cv2.resize(cam.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    peak = values.max()  # a little less than the map's: no pixel's centre need lie on a position
    return values / peak if peak > 0 else values
