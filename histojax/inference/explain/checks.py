"""Whether maps say anything of what a model learned: randomised weights, images without tissue, deletion, insertion.

* Randomised weights (Adebayo et al. 2018, arXiv 1810.03292): maps of the same model with the values of each parameter
  shuffled, of the head alone and then of all layers. A map that stays as it was tells of the image, not of the model.
* Background only: images of nothing but glass. What a map shows there is not tissue.
* Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421): the probability of the class while the pixels that the
  map says to matter most are taken away, or come into a blurred image, first; the area under it. As a yardstick, the
  same with the positions of the map shuffled: as coarse a map that knows nothing.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from data_pipelines.pixels import resize
from histojax.inference.explain.explain import Explainer, Explanation, batches
from histojax.inference.explain.grad_cam import upsample
from histojax.training.step import ModelState

STEPS = 20  # of a curve: each time 5 % of the pixels
_SHUFFLES = 3  # maps of the yardstick
_DRAWS = 3  # models with shuffled weights
_BLUR = 5 / 224  # standard deviation of the blurred image, a share of its side (Petsiuk et al.: 5 of 224 pixels)
_GLASS = 240  # of 255: the white of a slide without tissue
_NOISE = 2.0


@dataclasses.dataclass(frozen=True)
class _Case:
    """A map that is looked into: the image as the model sees it, and what was found there."""

    image: np.ndarray
    explanation: Explanation


def check(explainer: Explainer, images: Iterable[np.ndarray], *, seed: int = 0) -> dict[str, Any]:
    """The sanity checks of the maps that an explainer makes of images.

    Args:
      explainer: its class or classes are asked about.
      images: uint8 [h, w, 3] each, of any size.
      seed: of whatever is shuffled.

    Returns:
      For checks.json: `randomised_weights`, `background_only`, `deletion`, `insertion`. What cannot be measured, as the
      similarity to a map that is the same everywhere, is None, and left out of the means.
    """
    cases = []
    for batch in batches(images, explainer.predictor.batch_size):
        seen = [resize(image, explainer.predictor.image_size) for image in batch]
        cases += [_Case(image, one) for image, ones in zip(seen, explainer.explain(seen), strict=True) for one in ones]
    rng = np.random.default_rng(seed)
    return {
        "maps": len(cases),
        "seed": seed,
        "randomised_weights": _randomised(explainer, cases, rng),
        "background_only": _background(explainer, cases, rng),
        **_curves(explainer, cases, rng),
    }


def lines(checks: dict[str, Any]) -> str:
    """The checks as a table for the terminal."""

    def number(value: float | None) -> str:
        return f"{'-' if value is None else format(value, '.3f'):>9}"

    rows = [f"sanity checks of {checks['maps']} maps"]
    rows.append(f"  {'randomised weights':<34}{'Spearman':>9}{'SSIM':>9}   near 0: the map depends on what was learned")
    for name, row in checks["randomised_weights"].items():
        flat = f"   {row['flat']:.0%} of the maps are zero everywhere" if row["flat"] else ""
        rows.append(f"    {name:<32}{number(row['spearman'])}{number(row['ssim'])}{flat}")
    rows.append(f"  {'background only':<34}{'prob.':>9}{'peak':>9}   peak of the map / median peak in the images")
    for name, per_class in checks["background_only"].items():
        for called, row in per_class.items():
            rows.append(f"    {f'{name}: {called}':<32}{number(row['probability'])}{number(row['relative_peak'])}")
    rows.append(f"  {'area under the curve':<34}{'map':>9}{'shuffled':>9}")
    for name, wanted in (("deletion", "lower is better"), ("insertion", "higher is better")):
        row = checks[name]
        rows.append(f"    {name:<32}{number(row['auc'])}{number(row['auc_shuffled'])}   {wanted}")
    return "\n".join(rows)


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation of two maps; None where one is the same everywhere."""
    ranks = np.stack([_ranks(a.ravel()), _ranks(b.ravel())])
    if (ranks.std(axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Structural similarity of two maps [h, w] in 0 … 1 (Wang et al. 2004), with Gaussian windows of σ = 1.5.

    As scikit-image's `structural_similarity` with their settings has it: mean over all windows that lie inside. None
    where both maps are zero, which would be alike without saying anything, or smaller than a window of 11 × 11.
    """
    radius = 5
    if not (a.any() and b.any()) or min(a.shape) <= 2 * radius:
        return None

    def local(x: np.ndarray) -> np.ndarray:
        blurred = cv2.GaussianBlur(x, (2 * radius + 1,) * 2, 1.5)
        return blurred[radius:-radius, radius:-radius]

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = local(a), local(b)
    var_a, var_b, cov = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((similar / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def shuffled(model: ModelState, rng: np.random.Generator, *, part: str = "") -> ModelState:
    """A model with the values of each parameter and statistic in a random order; `part`: only of that child."""

    def anew(path: Any, leaf: jax.Array) -> jax.Array:
        if part and jax.tree_util.keystr(path[:1], simple=True) != part:
            return leaf
        values = rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape)
        return jax.device_put(values, leaf.sharding)

    params, stats = (jax.tree_util.tree_map_with_path(anew, tree) for tree in (model.params, model.stats))
    return dataclasses.replace(model, params=params, stats=stats)


def _randomised(explainer: Explainer, cases: Sequence[_Case], rng: np.random.Generator) -> dict[str, Any]:
    size, trained = explainer.predictor.image_size, explainer.predictor.trained.model
    images, targets = np.stack([case.image for case in cases]), [case.explanation.target for case in cases]
    result = {}
    for name, part in (("head", "head"), ("all layers", "")):
        pairs = []
        for _ in range(_DRAWS):
            others = explainer.cam.maps(images, np.array(targets), shuffled(trained, rng, part=part))
            pairs += [(case.explanation.map, other) for case, other in zip(cases, others, strict=True)]
        result[name] = {
            "spearman": _mean([spearman(a, b) for a, b in pairs]),
            "ssim": _mean([ssim(upsample(a, size, size), upsample(b, size, size)) for a, b in pairs]),
            "flat": float(np.mean([not other.any() for _, other in pairs])),
        }
    return result


def _background(explainer: Explainer, cases: Sequence[_Case], rng: np.random.Generator) -> dict[str, Any]:
    predictor, side = explainer.predictor, explainer.predictor.image_size
    noise = rng.normal(_GLASS, _NOISE, (side, side, 3))
    images = {
        "white": np.full((side, side, 3), 255, np.uint8),
        "glass": np.clip(np.rint(noise), 0, 255).astype(np.uint8),
    }
    targets = sorted({case.explanation.target for case in cases})
    result: dict[str, Any] = {}
    for name, image in images.items():
        probabilities = predictor.predict([image])[0]
        maps = explainer.cam.maps(np.stack([image] * len(targets)), np.array(targets))
        result[name] = {}
        for target, found in zip(targets, maps, strict=True):
            peaks = [case.explanation.map.max() for case in cases if case.explanation.target == target]
            usual = float(np.median(peaks))
            result[name][predictor.classes[target]] = {
                "probability": float(probabilities[target]),
                "relative_peak": float(found.max()) / usual if usual > 0 else None,
            }
    return result


def _curves(explainer: Explainer, cases: Sequence[_Case], rng: np.random.Generator) -> dict[str, Any]:
    """Deletion and insertion of each map and of its shuffled ones; a map that is zero everywhere gives no order."""
    cases = [case for case in cases if case.explanation.map.any()]
    if not cases:
        return {name: {"maps": 0, "auc": None, "auc_shuffled": None} for name in ("deletion", "insertion")}
    mean = explainer.predictor.trained.config.data.mean
    orders = [_orders(case, rng) for case in cases]

    def images(insertion: bool) -> Iterator[np.ndarray]:
        for case, of_case in zip(cases, orders, strict=True):
            nothing = np.broadcast_to(np.rint(np.array(mean) * 255).astype(np.uint8), case.image.shape)
            start, end = (_blurred(case.image), case.image) if insertion else (case.image, nothing)
            for order in of_case:
                yield from _exchanged(start, end, order)

    result = {}
    for name in ("deletion", "insertion"):
        said = explainer.predictor.predict(images(name == "insertion"))
        said = said.reshape(len(cases), 1 + _SHUFFLES, STEPS + 1, -1)
        of_target = np.stack([rows[..., case.explanation.target] for rows, case in zip(said, cases, strict=True)])
        areas = np.trapezoid(of_target, dx=1 / STEPS, axis=-1)
        result[name] = {
            "maps": len(cases),
            "auc": float(areas[:, 0].mean()),
            "auc_shuffled": float(areas[:, 1:].mean()),
            "share_of_pixels": np.linspace(0, 1, STEPS + 1).round(6).tolist(),
            "mean_probability": of_target[:, 0].mean(axis=0).astype(float).tolist(),
            "auc_of_map": areas[:, 0].astype(float).tolist(),
        }
    return result


def _orders(case: _Case, rng: np.random.Generator) -> list[np.ndarray]:
    """Pixels of the image, those that matter most first: by the map, then by the same with its positions shuffled."""
    raw, side = case.explanation.map, len(case.image)
    others = [rng.permutation(raw.ravel()).reshape(raw.shape) for _ in range(_SHUFFLES)]
    # Equal ones, as where the map is zero, in random order: by rows they would be a direction.
    return [np.lexsort((rng.random(side * side), -upsample(one, side, side).ravel())) for one in (raw, *others)]


def _exchanged(start: np.ndarray, end: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """`start` with none, then with ever more, at last with all pixels from `end`, in this order."""
    replaced = np.empty(order.size, np.float64)
    replaced[order] = np.arange(order.size) / order.size
    replaced = replaced.reshape(*start.shape[:2], 1)
    for step in range(STEPS + 1):
        yield np.where(replaced < step / STEPS, end, start)


def _blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), _BLUR * len(image))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + 1 + last) / 2)[place]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
