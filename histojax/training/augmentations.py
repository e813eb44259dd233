"""Augmentations of one's own: random changes of a batch on the devices, after those of `data.augment`."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from histojax.core.errors import RunError
from histojax.core.plugins import Registry, blaming, described, qualified_name


@dataclasses.dataclass(frozen=True, eq=False)
class Augmentation:
    """An augmentation of one's own; `train.augmentations` selects it.

    Attributes:
      name: an entry of `train.augmentations`.
      function: `function(images, key)` returns changed images of the same shape. `images: f32 [b, s, s, 3]` are RGB in
        0 … 1, before normalisation; what leaves that range is clipped. `key` is a jax random key, another one in each
        step. The function is compiled with the step, so it is pure: the same arguments give the same images.
    """

    name: str
    function: Callable[[jax.Array, jax.Array], jax.Array]


REGISTRY = Registry(Augmentation, "augmentation", "histojax.augmentations")
register = REGISTRY.register


def check(names: Sequence[str], batch_size: int, image_size: int) -> None:
    """Check, without computing anything, that augmentations are registered and fit the images.

    Raises:
      RunError: an unknown name, or a function that fails or returns another shape; the message names it.
    """
    for name in names:
        try:
            REGISTRY.find(name)
        except ValueError as error:
            raise RunError(f"train.augmentations: {error}") from None
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8)
    jax.eval_shape(lambda images: augment(images, jax.random.key(0), names), images)


def augment(images: jax.Array, key: jax.Array, names: Sequence[str]) -> jax.Array:
    """Apply registered augmentations in the order of their names.

    Args:
      images: `u8 [b, s, s, 3]`.
      key: random key of this batch.
      names: the augmentations; each draws its random numbers from the key and its name.

    Returns:
      `f32 [b, s, s, 3]` in 0 … 255; the images themselves without names.

    Raises:
      RunError: a function fails, or returns another shape; the message names it.
    """
    if not names:
        return images
    pixels = images.astype(jnp.float32) / 255
    for name in names:
        function = REGISTRY.find(name).function
        with blaming(f"train.augmentations: {name}", function):
            changed = function(pixels, jax.random.fold_in(key, zlib.crc32(name.encode())))
        if getattr(changed, "shape", None) != pixels.shape or not jnp.issubdtype(changed.dtype, jnp.floating):
            raise RunError(
                f"train.augmentations: {name}: {qualified_name(function)} returned {described(changed)}; "
                f"it must return images like those it was given, {described(pixels)}"
            )
        pixels = jnp.clip(changed.astype(jnp.float32), 0, 1)
    return pixels * 255
