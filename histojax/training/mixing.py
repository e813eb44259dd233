"""Mixup and cutmix: each training image is mixed with another image of its batch, and so are their targets.

mixup: Zhang et al. 2018, arXiv:1710.09412. cutmix: Yun et al. 2019, arXiv:1905.04899.
Shapes: b images of h × w pixels with c channels, k classes or labels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def mix(
    images: Float[Array, "b h w c"], targets: Float[Array, "b k"], key: Key[Array, ""], mixup: float, cutmix: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mix every image with its mirror image in the batch: image i with image b - 1 - i.

    Batches are shuffled, so the partner is a random image. One weight is drawn for the whole batch. With both
    methods switched on, each batch gets one of them, each with probability 1/2.

    Args:
      images: normalised pixels.
      targets: training targets, mixed with the same weight as the pixels.
      key: random key of this batch.
      mixup: α of the Beta(α, α) distribution of the weight; 0 switches mixup off.
      cutmix: α of the Beta(α, α) distribution of the kept area; 0 switches cutmix off.

    Returns:
      Mixed images and targets; the arguments themselves when both methods are off.
    """
    if not (mixup or cutmix):
        return images, targets
    which_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    partners = images[::-1]
    alpha, beta = mixup or 1.0, cutmix or 1.0
    own_weight = jax.random.beta(mixup_key, alpha, alpha)
    blended = own_weight * images + (1 - own_weight) * partners

    box = _random_box(cutmix_key, box_key, beta, images.shape[1], images.shape[2])
    pasted = jnp.where(box[None, :, :, None], partners, images)

    use_cutmix = jax.random.bernoulli(which_key) if mixup and cutmix else jnp.asarray(bool(cutmix))
    own_weight = jnp.where(use_cutmix, 1 - box.mean(), own_weight)
    return jnp.where(use_cutmix, pasted, blended), own_weight * targets + (1 - own_weight) * targets[::-1]


def _random_box(
    side_key: Key[Array, ""], centre_key: Key[Array, ""], alpha: float, height: int, width: int
) -> Bool[Array, "h w"]:
    """Draw the box that cutmix pastes: uniform centre, area 1 - Beta(α, α) of the image, clipped at its border."""
    side = jnp.sqrt(1 - jax.random.beta(side_key, alpha, alpha))
    centre = jax.random.uniform(centre_key, (2,))
    rows, columns = jnp.arange(height)[:, None] / height, jnp.arange(width)[None, :] / width
    return (jnp.abs(rows - centre[0]) < side / 2) & (jnp.abs(columns - centre[1]) < side / 2)
