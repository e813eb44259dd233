"""What a run remembers of its training images, in the file `novelty.safetensors` of its work directory."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.evaluation import bootstrap
from histojax.evaluation.novelty import UNLIKE, UNLIKE_TRAINING, Gaussian, Neighbours, Quantiles
from histojax.inference.novelty import pixel_rules

FILE = "novelty.safetensors"
_KEY = "histojax"  # of the metadata, which is JSON; a second key would make the order of bytes random
_FORMAT = 1
_MIN_IMAGES = 10  # training, and validation images

Row = list[float | str]  # the values of `COLUMNS` for one image


@dataclass(frozen=True)
class Memory:
    """Training images as a distribution of features, and validation images as distributions of distances.

    Attributes:
      gaussian: mean and covariance of the training images.
      neighbours: some of the training images.
      mahalanobis: distances of the validation images from `gaussian`.
      knn: their distances from `neighbours`.
      facts: `checkpoint`, `layer`, `image_size`, `train_images`, `val_images`, `unit` and `units` of the validation
        images, and `usual`, for `pixel_rules.flags`.
    """

    gaussian: Gaussian
    neighbours: Neighbours
    mahalanobis: Quantiles
    knn: Quantiles
    facts: Mapping[str, Any]

    def row(self, feature: np.ndarray, rgb: np.ndarray) -> Row:
        """Return the values of `COLUMNS` for one image: distances to six digits, quantiles, flags separated by "; ".

        Args:
          feature: [d].
          rgb: u8 [s, s, 3], as the model sees it.
        """
        distance, knn = self.gaussian.distance(feature), self.neighbours.distance(feature)
        quantile = self.mahalanobis.rank(distance)
        flags = [UNLIKE_TRAINING] if quantile >= UNLIKE else []
        flags += pixel_rules.flags(pixel_rules.measure(rgb), self.facts["usual"])
        rounded = [float(f"{x:.6g}") for x in (distance, quantile, knn, self.knn.rank(knn))]
        return [*rounded, "; ".join(flags)]

    def write(self, path: pathlib.Path) -> None:
        """Write the file atomically; the same content always gives the same bytes."""
        arrays = {f"{name}.{key}": array for name in _PARTS for key, array in vars(getattr(self, name)).items()}
        metadata = json.dumps({"format": _FORMAT, **self.facts}, sort_keys=True, allow_nan=False)
        with atomic_write(path) as temporary:
            arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            temporary.write_bytes(safetensors.numpy.save(arrays, {_KEY: metadata}))


_PARTS = {"gaussian": Gaussian, "neighbours": Neighbours, "mahalanobis": Quantiles, "knn": Quantiles}


def read(path: pathlib.Path) -> Memory:
    """Read a file that `Memory.write` wrote. Nothing is unpickled.

    Raises:
      RunError: the file is damaged or of another version.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            if facts.pop("format") != _FORMAT:
                raise ValueError("another version of histojax wrote it")
            parts = {
                name: kind(**{key: file.get_tensor(f"{name}.{key}") for key in kind.__annotations__})
                for name, kind in _PARTS.items()
            }
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); write it again with histojax novelty, or delete it"
        ) from error
    return Memory(**parts, facts=facts)


def digest(path: pathlib.Path) -> str:
    """Return sixteen hexadecimal digits that identify a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def build(
    train: np.ndarray,
    groups: Sequence[str],
    val: np.ndarray,
    units: tuple[str, np.ndarray, int],
    measured: Sequence[Mapping[str, float]],
    facts: Mapping[str, Any],
) -> Memory:
    """Compute what a run remembers.

    Args:
      train: features of training images, [n, d].
      groups: class of each training image.
      val: features of validation images, [m, d].
      units: of the validation images, as `bootstrap.units` returns them; each unit counts the same.
      measured: of the validation images, as `pixel_rules.measure` returns it.
      facts: further facts.

    Raises:
      RunError: too few images, features that are not finite, or all equal.
    """
    for side, features in (("training", train), ("validation", val)):
        if len(features) < _MIN_IMAGES:
            raise RunError(
                f"the run has {len(features)} {side} images; the distances need at least {_MIN_IMAGES}: train a run "
                "with more, or with another data.split.val_fraction"
            )
        if not np.isfinite(features).all():
            raise RunError(f"features of {side} images are NaN or infinite: the model diverged; train it again")
    try:
        gaussian = Gaussian.fit(train)
    except ValueError as error:
        raise RunError(f"{error}: the model gives all training images the same; choose another --layer") from error
    neighbours = Neighbours.choose(train, groups)
    name, unit, count = units
    weights = bootstrap.equal_weights(unit)
    return Memory(
        gaussian,
        neighbours,
        Quantiles.of(np.array([gaussian.distance(row) for row in val]), weights),
        Quantiles.of(np.array([neighbours.distance(row) for row in val]), weights),
        {
            **facts,
            "train_images": len(train),
            "val_images": len(val),
            "unit": name,
            "units": count,
            "usual": {
                rule: Quantiles.of(np.array([row[rule] for row in measured]), weights).value(UNLIKE)
                for rule in pixel_rules.RULES
            },
        },
    )
