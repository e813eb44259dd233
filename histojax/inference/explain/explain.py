"""Explanations of a model's answers: maps, what they mark, the pictures and numbers of a folder of images."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from data_pipelines.pixels import resize
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.inference.explain import dt_grad_cam, pictures
from histojax.inference.explain.grad_cam import GradCAM, upsample
from histojax.inference.predictor import Predictor

T = TypeVar("T")
_ROWS = 12  # images on a contact sheet
_COLUMNS = 8  # classes on it


@dataclasses.dataclass(frozen=True)
class Source:
    """An image that is to be explained.

    Attributes:
      name: that no other image has; of its folder.
      image_id: its name as it was given.
      pixels: uint8 [h, w, 3], RGB.
    """

    name: str
    image_id: str
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A map of an image for one class.

    Attributes:
      target: number of the class.
      probability: of the class.
      map: f32 [h, w], at least 0, of the feature map's size; see `over`.
    """

    target: int
    probability: float
    map: np.ndarray

    def over(self, image: np.ndarray) -> np.ndarray:
        """The map of the image's own size: f32 [height, width], 1 where it is greatest; zero if it is so everywhere."""
        height, width = image.shape[:2]
        return upsample(self.map, width, height)


class Explainer:
    """Explains a trained model's answers.

    Attributes:
      cam: Grad-CAM of the model.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        layer: str = "",
        target: str = "predicted",
        rule: dt_grad_cam.Rule | None = None,
        min_part: float = 0.01,
    ):
        """What is asked.

        Args:
          predictor: the model.
          layer: name of a feature map; empty: the one that `grad_cam.default_layer` says.
          target: name of a class; `all`; or `predicted`: the most probable class, of several labels those at or above
            their thresholds, and the most probable one if there are none.
          rule: how the map is thresholded (DT Grad-CAM); None: not at all (Grad-CAM).
          min_part: least share of the image of a part, or a hole, that is kept.

        Raises:
          RunError: no such layer or class, `min_part` out of range.
        """
        if target not in (*predictor.classes, "all", "predicted"):
            raise RunError(f"--target={target} is neither all nor predicted nor one of {', '.join(predictor.classes)}")
        if not 0 <= min_part < 1:
            raise RunError(f"--min_part={min_part} is not a share in [0, 1)")
        self.predictor, self.rule, self.min_part, self._target = predictor, rule, min_part, target
        self.cam = GradCAM(predictor.trained, predictor.batch_size, layer)

    def explain(self, images: Sequence[np.ndarray]) -> list[list[Explanation]]:
        """Of each image `u8 [h, w, 3]`, of any size, its maps, one a class that is asked about."""
        probabilities = self.predictor.predict(images)
        asked = [(i, target) for i, row in enumerate(probabilities) for target in self._targets(row)]
        seen = [resize(image, self.predictor.image_size) for image in images]
        found: list[list[Explanation]] = [[] for _ in images]
        maps = self.cam.maps(np.stack([seen[i] for i, _ in asked]), np.array([target for _, target in asked]))
        for (i, target), one in zip(asked, maps, strict=True):
            found[i].append(Explanation(target, float(probabilities[i, target]), one))
        return found

    def mark(self, values: np.ndarray) -> dt_grad_cam.Marking | None:
        """What a map over an image marks; None with `rule=None`."""
        return None if self.rule is None else dt_grad_cam.mark(values, self.rule, self.min_part)

    def _targets(self, row: np.ndarray) -> list[int]:
        classes, cuts = self.predictor.classes, self.predictor.thresholds
        if self._target in classes:
            return [classes.index(self._target)]
        if self._target == "all":
            return list(range(len(classes)))
        there = [] if cuts is None else [i for i, name in enumerate(classes) if row[i] >= cuts[name]]
        return there or [int(row.argmax())]


def write(explainer: Explainer, sources: Iterable[Source], output: pathlib.Path) -> dict[str, Any]:
    """Explains images and writes what was found, a folder an image.

    In it, for each class, `CLASS.png` (the overlay), and with a rule `CLASS.mask.png` and `CLASS.geojson`; beside the
    folders `contact_sheet.png`, further sheets after twelve images, and `explanations.json`, which is returned.

    Raises:
      RunError: there is no image.
    """
    classes = explainer.predictor.classes
    files = file_names(classes)
    records: list[dict[str, Any]] = []
    rows: list[list[pictures.Picture]] = []
    facts = _facts(explainer)
    sheets = 0

    def write_sheet() -> None:
        nonlocal sheets
        sheets += 1
        path = output / f"contact_sheet{'' if sheets == 1 else f'_{sheets}'}.png"
        pictures.write_contact_sheet(path, rows, f"{facts['method']} of {facts['model']}, {explainer.cam.layer}")
        rows.clear()

    for batch in batches(sources, explainer.predictor.batch_size):
        for source, found in zip(batch, explainer.explain([source.pixels for source in batch]), strict=True):
            folder = output / source.name
            folder.mkdir(parents=True, exist_ok=True)
            row, targets = [], []
            for one in found:
                name, file = classes[one.target], files[one.target]
                values = one.over(source.pixels)
                marking = explainer.mark(values)
                words = f"{name}: {one.probability:.3f}"
                picture = pictures.Picture(source.pixels, values, marking, source.name, words, _remark(values, marking))
                pictures.write_overlay(folder / f"{file}.png", picture)
                if marking is not None:
                    pictures.write_mask(folder / f"{file}.mask.png", marking.mask)
                    dt_grad_cam.write_geojson(folder / f"{file}.geojson", marking, image=source.name, name=name)
                row.append(picture.thumbnail())
                targets.append(_numbers(name, one, marking))
            rows.append(row[:_COLUMNS])
            height, width = source.pixels.shape[:2]
            about = {"image_id": source.image_id, "folder": source.name, "width": width, "height": height}
            records.append(about | {"targets": targets})
            if len(rows) == _ROWS:
                write_sheet()
    if not records:
        raise RunError("no image could be read")
    if rows:
        write_sheet()
    summary = facts | {"images": records}
    write_json(output / "explanations.json", summary)
    return summary


def file_names(names: Iterable[str]) -> list[str]:
    """A file's or folder's name for each name: letters, digits, `_`, `-`, `.`; no two alike, even without case."""
    out: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name)[:80].lstrip(".") or "_"
        unique, number = plain, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken.add(unique.casefold())
        out.append(unique)
    return out


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one of those that are left."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _facts(explainer: Explainer) -> dict[str, Any]:
    """What the explanations have in common."""
    predictor, cam, rule = explainer.predictor, explainer.cam, explainer.rule
    facts: dict[str, Any] = {
        "method": "Grad-CAM" if rule is None else f"DT Grad-CAM ({rule})",
        "model": predictor.trained.config.model.name,
        "checkpoint": predictor.digest,
        "step": predictor.trained.meta["step"],
        "classes": list(predictor.classes),
        "image_size": predictor.image_size,
        "layer": {"name": cam.layer, "height": cam.layers[cam.layer][0], "width": cam.layers[cam.layer][1]},
    }
    return facts if rule is None else facts | {"threshold_rule": str(rule), "min_part": explainer.min_part}


def _remark(values: np.ndarray, marking: dt_grad_cam.Marking | None) -> str:
    if not values.any():
        return "nothing speaks for it"
    return "" if marking is None else f"threshold {marking.threshold:.2f}, {marking.mask.mean():.0%} marked"


def _numbers(name: str, one: Explanation, marking: dt_grad_cam.Marking | None) -> dict[str, Any]:
    """What explanations.json says of a map."""
    numbers = {
        "class": name,
        "probability": one.probability,
        "map_max": float(one.map.max()),
        "map": one.map.astype(float).round(6).tolist(),
    }
    if marking is None:
        return numbers
    return numbers | {
        "threshold": marking.threshold,
        "marked_share": float(marking.mask.mean()),
        "parts": [{"area_px": dt_grad_cam.area(rings), "holes": len(rings) - 1} for rings in marking.parts],
    }
