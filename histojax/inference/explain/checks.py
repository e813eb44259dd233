"""Sanity checks of saliency maps: do they reflect what the model learned?

* Randomised weights (Adebayo et al. 2018, arXiv 1810.03292): maps of the same model with the values of each parameter
  shuffled, first in the head alone, then in all layers. A map that does not change reflects the image, not the model.
* Background only: images of empty glass. What a map shows there is not tissue.
* Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421): the probability of the class while pixels are removed
  from the image, or inserted into a blurred one, those that the map ranks highest first; the area under that curve.
  The baseline is the same map with its positions shuffled: equally coarse, but without information.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from histojax.core.text_table import text_table
from histojax.inference.batching import batched
from histojax.inference.explain.explain import Explainer, Explanation
from histojax.inference.explain.grad_cam import upsample
from histojax.training.state import ModelState

STEPS = 20  # steps of a curve, of 5 % of the pixels each
_SHUFFLES = 3  # shuffled maps of the baseline
_DRAWS = 3  # models with shuffled weights that are averaged
_BLUR = 5 / 224  # standard deviation of the blur, as a fraction of the side (Petsiuk et al.: 5 of 224 pixels)
_GLASS = 240  # mean value, of 255, where a slide has no tissue
_NOISE = 2.0  # standard deviation of the values there


@dataclasses.dataclass(frozen=True)
class _Case:
    """A map to check, with the image `u8 [s, s, 3]` at the model's input size."""

    image: np.ndarray
    explanation: Explanation


def check(explainer: Explainer, images: Iterable[np.ndarray], *, seed: int = 0) -> dict[str, Any]:
    """Run the sanity checks on the maps of images.

    Args:
      explainer: makes the maps; its target classes are checked.
      images: uint8 [h, w, 3] each, of any size.
      seed: random seed for shuffling and noise.

    Returns:
      The content of checks.json: `randomised_weights`, `background_only`, `deletion`, `insertion`. Values that cannot
      be computed, such as the similarity to a constant map, are None and are left out of the means.
    """
    cases = []
    for batch in batched(images, explainer.predictor.batch_size):
        inputs = [explainer.predictor.input.of(image)[0] for image in batch]
        for image, explanations in zip(inputs, explainer.explain_inputs(inputs), strict=True):
            cases += [_Case(image, explanation) for explanation in explanations]
    rng = np.random.default_rng(seed)
    return {
        "maps": len(cases),
        "seed": seed,
        "randomised_weights": _randomised(explainer, cases, rng),
        "background_only": _background(explainer, cases, rng),
        **_curves(explainer, cases, rng),
    }


def format_checks(checks: dict[str, Any]) -> str:
    """Lay out the checks as tables for the terminal."""

    def number(value: float | None) -> str:
        return "-" if value is None else format(value, ".3f")

    weights = [("randomised weights", "Spearman", "SSIM", "near 0: the map depends on what was learned")]
    for name, row in checks["randomised_weights"].items():
        flat = f"{row['flat']:.0%} of the maps are zero everywhere" if row["flat"] else ""
        weights.append((f"  {name}", number(row["spearman"]), number(row["ssim"]), flat))
    background = [("background only", "prob.", "peak", "peak of the map / median peak in the images")]
    for image, by_class in checks["background_only"].items():
        for name, row in by_class.items():
            background.append((f"  {image}: {name}", number(row["probability"]), number(row["relative_peak"]), ""))
    curves = [("area under the curve", "map", "shuffled", "")]
    for name, remark in (("deletion", "lower is better"), ("insertion", "higher is better")):
        row = checks[name]
        curves.append((f"  {name}", number(row["auc"]), number(row["auc_shuffled"]), remark))
    tables = text_table([*weights, *background, *curves], right=(1, 2))
    return "\n".join([f"sanity checks of {checks['maps']} maps", *(f"  {line}" for line in tables)])


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Compute the rank correlation of two maps; None if one of them is constant."""
    ranks = np.stack([_ranks(a.ravel()), _ranks(b.ravel())])
    if (ranks.std(axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Compute the structural similarity (Wang et al. 2004) of two maps [h, w] in 0 … 1, with Gaussian windows, σ = 1.5.

    It equals scikit-image's `structural_similarity` with the settings of Wang et al.: the mean over all windows that
    lie inside the map. It is None if either map is zero everywhere, since such maps are similar without meaning
    anything, or if the maps are smaller than a window of 11 × 11.
    """
    radius = 5
    if not (a.any() and b.any()) or min(a.shape) <= 2 * radius:
        return None

    def local_mean(x: np.ndarray) -> np.ndarray:
        blurred = cv2.GaussianBlur(x, (2 * radius + 1,) * 2, 1.5)
        return blurred[radius:-radius, radius:-radius]

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    cov = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def shuffle_weights(model: ModelState, rng: np.random.Generator, *, part: str = "") -> ModelState:
    """Shuffle the values within each parameter and statistic.

    Args:
      model: the trained values.
      rng: source of the permutations.
      part: name of the submodule to shuffle; empty: the whole model.
    """

    def shuffle(path: Any, leaf: jax.Array) -> jax.Array:
        if part and jax.tree_util.keystr(path[:1], simple=True) != part:
            return leaf
        values = rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape)
        return jax.device_put(values, leaf.sharding)

    params, stats = (jax.tree_util.tree_map_with_path(shuffle, tree) for tree in (model.params, model.stats))
    return dataclasses.replace(model, params=params, stats=stats)


def _randomised(explainer: Explainer, cases: Sequence[_Case], rng: np.random.Generator) -> dict[str, Any]:
    """Compare the maps with those of models with shuffled weights."""
    size, trained = explainer.predictor.image_size, explainer.predictor.trained.model
    images, targets = np.stack([case.image for case in cases]), [case.explanation.target for case in cases]
    result = {}
    for name, part in (("head", "head"), ("all layers", "")):
        pairs = []
        for _ in range(_DRAWS):
            others = explainer.cam.maps(images, np.array(targets), shuffle_weights(trained, rng, part=part))
            pairs += [(case.explanation.map, other) for case, other in zip(cases, others, strict=True)]
        result[name] = {
            "spearman": _mean([spearman(a, b) for a, b in pairs]),
            "ssim": _mean([ssim(upsample(a, size, size), upsample(b, size, size)) for a, b in pairs]),
            "flat": float(np.mean([not other.any() for _, other in pairs])),
        }
    return result


def _background(explainer: Explainer, cases: Sequence[_Case], rng: np.random.Generator) -> dict[str, Any]:
    """Measure probabilities and peaks of the maps in images without tissue."""
    predictor, side = explainer.predictor, explainer.predictor.image_size
    noise = rng.normal(_GLASS, _NOISE, (side, side, 3))
    images = {
        "white": np.full((side, side, 3), 255, np.uint8),
        "glass": np.clip(np.rint(noise), 0, 255).astype(np.uint8),
    }
    targets = sorted({case.explanation.target for case in cases})
    result: dict[str, Any] = {}
    for name, image in images.items():
        probabilities = predictor.predict_inputs([image])[0]
        maps = explainer.cam.maps(np.stack([image] * len(targets)), np.array(targets))
        result[name] = {}
        for target, values in zip(targets, maps, strict=True):
            peaks = [case.explanation.map.max() for case in cases if case.explanation.target == target]
            median = float(np.median(peaks))
            result[name][predictor.classes[target]] = {
                "probability": float(probabilities[target]),
                "relative_peak": float(values.max()) / median if median > 0 else None,
            }
    return result


def _curves(explainer: Explainer, cases: Sequence[_Case], rng: np.random.Generator) -> dict[str, Any]:
    """Measure deletion and insertion for each map and its shuffled copies.

    Maps that are zero everywhere are left out, because they do not order the pixels.
    """
    cases = [case for case in cases if case.explanation.map.any()]
    if not cases:
        return {name: {"maps": 0, "auc": None, "auc_shuffled": None} for name in ("deletion", "insertion")}
    mean = explainer.predictor.trained.config.data.mean
    orders = [_pixel_orders(case, rng) for case in cases]

    def images(insertion: bool) -> Iterator[np.ndarray]:
        for case, case_orders in zip(cases, orders, strict=True):
            mean_colour = np.broadcast_to(np.rint(np.array(mean) * 255).astype(np.uint8), case.image.shape)
            start, end = (_blur(case.image), case.image) if insertion else (case.image, mean_colour)
            for order in case_orders:
                yield from _replace_gradually(start, end, order)

    result = {}
    for name in ("deletion", "insertion"):
        probabilities = explainer.predictor.predict_inputs(images(name == "insertion"))
        probabilities = probabilities.reshape(len(cases), 1 + _SHUFFLES, STEPS + 1, -1)
        curves = np.stack([rows[..., case.explanation.target] for rows, case in zip(probabilities, cases, strict=True)])
        areas = np.trapezoid(curves, dx=1 / STEPS, axis=-1)
        result[name] = {
            "maps": len(cases),
            "auc": float(areas[:, 0].mean()),
            "auc_shuffled": float(areas[:, 1:].mean()),
            "share_of_pixels": np.linspace(0, 1, STEPS + 1).round(6).tolist(),
            "mean_probability": curves[:, 0].mean(axis=0).astype(float).tolist(),
            "auc_of_map": areas[:, 0].astype(float).tolist(),
        }
    return result


def _pixel_orders(case: _Case, rng: np.random.Generator) -> list[np.ndarray]:
    """Order the image's pixels, most important first: by the map, then by each copy with its positions shuffled."""
    values, side = case.explanation.map, len(case.image)
    copies = [rng.permutation(values.ravel()).reshape(values.shape) for _ in range(_SHUFFLES)]
    # Ties, such as where the map is zero, are in random order: row by row would favour a direction.
    return [np.lexsort((rng.random(side * side), -upsample(m, side, side).ravel())) for m in (values, *copies)]


def _replace_gradually(start: np.ndarray, end: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `start` with none, then ever more, and finally all of its pixels replaced by those of `end`, in order."""
    replaced = np.empty(order.size, np.float64)
    replaced[order] = np.arange(order.size) / order.size
    replaced = replaced.reshape(*start.shape[:2], 1)
    for step in range(STEPS + 1):
        yield np.where(replaced < step / STEPS, end, start)


def _blur(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), _BLUR * len(image))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank values; equal values share the mean of their ranks."""
    _, position, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + 1 + last) / 2)[position]


def _mean(values: Sequence[float | None]) -> float | None:
    """Average the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
