"""Colours of the synthetic slides: Beer-Lambert optical densities and a scanner, both varying by case.

All arithmetic is float64 although the result has 8 bits, so a last-bit difference between the `exp` of two CPUs
practically never changes a pixel.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Optical-density directions, RGB: hematoxylin as in Ruifrok and Johnston (2001); their eosin looks magenta on a
# screen, so ours absorbs more blue.
_HEMATOXYLIN = (0.65, 0.70, 0.29)
_EOSIN = (0.10, 0.91, 0.38)


@dataclasses.dataclass(frozen=True)
class Look:
    """Staining and scanning of one case; densities in OD (base 10), blur in pixels of an image 175 pixels wide."""

    vectors: Array  # (2, 3): hematoxylin, eosin
    hematoxylin: float  # OD, mean over the tissue
    eosin: float
    white: Array  # (3,): transmitted light, 0..1
    gamma: float
    blur: float
    noise: float  # sd in grey levels


def draw_look(rng: np.random.Generator) -> Look:
    """Draw the look of one case; its distribution does not depend on the class."""
    vectors = np.array([_HEMATOXYLIN, _EOSIN]) + rng.normal(0.0, [[0.05, 0.04, 0.04], [0.03, 0.05, 0.04]])
    vectors = np.clip(vectors, 0.02, None)
    vectors /= np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return Look(
        vectors=vectors,
        hematoxylin=float(rng.uniform(0.20, 0.32)),
        eosin=float(rng.uniform(0.17, 0.29)),
        white=rng.uniform([0.88, 0.90, 0.88], [0.97, 0.98, 0.97]),
        gamma=float(rng.uniform(0.88, 1.12)),
        blur=float(rng.uniform(0.35, 0.75)),
        noise=float(rng.uniform(1.5, 4.0)),
    )


def vary(look: Look, rng: np.random.Generator) -> Look:
    """Vary a look for another field of view, where the section is slightly thicker or thinner."""
    thick = rng.normal(1.0, 0.06, 2)
    return dataclasses.replace(look, hematoxylin=look.hematoxylin * thick[0], eosin=look.eosin * thick[1])


def calibrate(hematoxylin: Array, eosin: Array, tissue: Array, look: Look, rng: np.random.Generator) -> Array:
    """Turn raw maps into densities (2, h, w) in OD whose means, spreads and correlation do not reveal the class.

    The raw maps depend on the class: large nuclei make an image bluer, pale pools make it flatter. Mean, standard
    deviation and correlation of the two stains over the tissue are therefore set to values drawn from one distribution.
    """
    weight = tissue / max(tissue.sum(), 1.0)
    spread = rng.uniform([0.70, 0.32], [0.90, 0.42])
    link = rng.uniform(-0.42, -0.30)
    out = np.stack([hematoxylin, eosin])
    for _ in range(4):  # clipping changes the moments slightly; four rounds bring them back to about 1 %
        blue, pink = (_standard(x, weight) for x in out)
        pink = _standard(pink - (weight * blue * pink).sum() * blue, weight)
        pink = link * blue + np.sqrt(1 - link**2) * pink
        for k, (x, mean) in enumerate(((blue, look.hematoxylin), (pink, look.eosin))):
            clipped = np.clip(1.0 + spread[k] * x, 0.08, 4.5)
            out[k] = mean * clipped / (weight * clipped).sum()
    return out


def _standard(x: Array, weight: Array) -> Array:
    x = x - (weight * x).sum()
    return x / max(np.sqrt((weight * x * x).sum()), 1e-6)


def develop(density: Array, tissue: Array, look: Look, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Render densities (2, h, w) in OD as RGB uint8 (h, w, 3)."""
    od = np.einsum("khw,kc->hwc", density * tissue, look.vectors)
    light = look.white * np.exp(-np.log(10.0) * od)
    light = np.clip(light, 0.0, 1.0) ** look.gamma
    grey = 255.0 * light + rng.normal(0.0, look.noise, (*light.shape[:2], 1)) + rng.normal(0.0, 1.0, light.shape)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
