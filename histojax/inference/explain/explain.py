"""Explain a model's predictions: maps, marked areas, and the pictures and numbers of a folder of images."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.inference.batching import batched
from histojax.inference.explain import dt_grad_cam, pictures
from histojax.inference.explain.grad_cam import GradCAM, upsample
from histojax.inference.predictor import Predictor

_SHEET_ROWS = 12  # images on a contact sheet
_SHEET_COLUMNS = 8  # classes on a contact sheet


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to explain.

    Attributes:
      name: unique name, used for the image's folder.
      image_id: name of the image as given.
      pixels: uint8 [h, w, 3], RGB.
      label: the true label; empty if it is not known.
    """

    name: str
    image_id: str
    pixels: np.ndarray
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The map of an image for one class.

    Attributes:
      target: index of the class.
      probability: probability of the class.
      map: f32 [h, w], at least 0, of the size of the feature map; see `over`.
    """

    target: int
    probability: float
    map: np.ndarray

    def over(self, image: np.ndarray) -> np.ndarray:
        """Resize the map to the image: f32 [height, width] with maximum 1, or zero if the map is zero everywhere."""
        height, width = image.shape[:2]
        return upsample(self.map, width, height)


class Explainer:
    """Explains the predictions of a trained model.

    Attributes:
      cam: Grad-CAM of the model.
      target: what is explained, as given.
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
        """Choose what to explain.

        Args:
          predictor: the model.
          layer: name of a feature map; empty: the default of the model's specification.
          target: name of a class; `all`; or `predicted`: the most probable class, or with a multi-label model the
            labels at or above their thresholds, and the most probable label if there are none.
          rule: how the map is thresholded (DT Grad-CAM); None: no thresholding (Grad-CAM).
          min_part: smallest part or hole to keep, as a fraction of the image's area.

        Raises:
          RunError: unknown layer or class, or `min_part` out of range.
        """
        if target not in (*predictor.classes, "all", "predicted"):
            raise RunError(f"--target={target} is not one of all, predicted, {', '.join(predictor.classes)}")
        if not 0 <= min_part < 1:
            raise RunError(f"--min_part={min_part} is not a fraction in [0, 1)")
        self.predictor, self.rule, self.min_part, self.target = predictor, rule, min_part, target
        self.cam = GradCAM(predictor.trained, predictor.batch_size, layer)

    def explain(self, images: Sequence[np.ndarray]) -> list[list[Explanation]]:
        """Explain images `u8 [h, w, 3]` of any size.

        Returns:
          For each image its maps, one per class that is explained.
        """
        return self.explain_inputs([self.predictor.input.of(image)[0] for image in images])

    def explain_inputs(self, inputs: Sequence[np.ndarray]) -> list[list[Explanation]]:
        """The same of images `u8 [s, s, 3]` that the predictor's `input` has made."""
        probabilities = self.predictor.predict_inputs(inputs)
        pairs = [(i, target) for i, row in enumerate(probabilities) for target in self._targets(row)]
        explanations: list[list[Explanation]] = [[] for _ in inputs]
        maps = self.cam.maps(np.stack([inputs[i] for i, _ in pairs]), np.array([target for _, target in pairs]))
        for (i, target), values in zip(pairs, maps, strict=True):
            explanations[i].append(Explanation(target, float(probabilities[i, target]), values))
        return explanations

    def mark(self, values: np.ndarray) -> dt_grad_cam.Marking | None:
        """Threshold a map that has the size of its image; None if there is no rule."""
        return None if self.rule is None else dt_grad_cam.mark(values, self.rule, self.min_part)

    def _targets(self, row: np.ndarray) -> list[int]:
        """Choose the classes to explain from an image's probabilities."""
        classes, thresholds = self.predictor.classes, self.predictor.thresholds
        if self.target in classes:
            return [classes.index(self.target)]
        if self.target == "all":
            return list(range(len(classes)))
        labels = [] if thresholds is None else [i for i, name in enumerate(classes) if row[i] >= thresholds[name]]
        return labels or [int(row.argmax())]


def write(explainer: Explainer, sources: Iterable[Source], output: pathlib.Path) -> dict[str, Any]:
    """Explain images and write the results, one folder per image.

    A folder contains, for each class, `CLASS.png` (the overlay) and, with a threshold rule, `CLASS.mask.png` and
    `CLASS.geojson`. Beside the folders are `contact_sheet.png`, one further sheet per twelve images, and
    `explanations.json`.

    Args:
      explainer: explains the images.
      sources: the images.
      output: folder to write to; files of the same names are replaced.

    Returns:
      The content of `explanations.json`.

    Raises:
      RunError: there is no image.
    """
    facts = _facts(explainer)
    title = f"{facts['method']} of {facts['model']}, {explainer.cam.layer}"
    records: list[dict[str, Any]] = []
    rows: list[list[pictures.Picture]] = []
    num_sheets = 0

    def write_sheet() -> None:
        nonlocal num_sheets
        num_sheets += 1
        path = output / f"contact_sheet{'' if num_sheets == 1 else f'_{num_sheets}'}.png"
        pictures.write_contact_sheet(path, rows, title)
        rows.clear()

    for batch in batched(sources, explainer.predictor.batch_size):
        for source, explanations in zip(batch, explainer.explain([source.pixels for source in batch]), strict=True):
            record, thumbnails = _write_image(explainer, source, explanations, output / source.name)
            records.append(record)
            rows.append(thumbnails[:_SHEET_COLUMNS])
            if len(rows) == _SHEET_ROWS:
                write_sheet()
    if not records:
        raise RunError("no image could be read")
    if rows:
        write_sheet()
    summary = facts | {"images": records}
    write_json(output / "explanations.json", summary)
    return summary


def _write_image(
    explainer: Explainer, source: Source, explanations: Sequence[Explanation], folder: pathlib.Path
) -> tuple[dict[str, Any], list[pictures.Picture]]:
    """Write the files of one image; return its record for explanations.json and its thumbnails."""
    classes = explainer.predictor.classes
    files = file_names(classes)
    folder.mkdir(parents=True, exist_ok=True)
    thumbnails, targets = [], []
    for explanation in explanations:
        name, file = classes[explanation.target], files[explanation.target]
        values = explanation.over(source.pixels)
        marking = explainer.mark(values)
        title = f"{name}: {explanation.probability:.3f}"
        picture = pictures.Picture(
            source.pixels, values, marking, source.name, title, _remark(values, marking), source.label
        )
        pictures.write_overlay(folder / f"{file}.png", picture)
        if marking is not None:
            pictures.write_mask(folder / f"{file}.mask.png", marking.mask)
            dt_grad_cam.write_geojson(folder / f"{file}.geojson", marking, image=source.name, name=name)
        thumbnails.append(picture.thumbnail())
        targets.append(_target_record(name, explanation, marking))
    height, width = source.pixels.shape[:2]
    record = {
        "image_id": source.image_id, "folder": source.name, "label": source.label or None,
        "width": width, "height": height, "targets": targets,
    }  # fmt: skip
    return record, thumbnails


def file_names(names: Iterable[str]) -> list[str]:
    """Make a file name of each name: letters, digits, `_`, `-`, `.`; unique even where case is ignored."""
    unique_names: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name)[:80].lstrip(".") or "_"
        unique, number = plain, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken.add(unique.casefold())
        unique_names.append(unique)
    return unique_names


def _facts(explainer: Explainer) -> dict[str, Any]:
    """Describe the model and the method, for explanations.json."""
    predictor, cam, rule = explainer.predictor, explainer.cam, explainer.rule
    facts: dict[str, Any] = {
        "method": "Grad-CAM" if rule is None else f"DT Grad-CAM ({rule})",
        "model": predictor.trained.config.model.name,
        "checkpoint": predictor.digest,
        "step": predictor.trained.meta["step"],
        "classes": list(predictor.classes),
        "thresholds": predictor.thresholds,
        "target": explainer.target,
        "image_size": predictor.image_size,
        "layer": {"name": cam.layer, "height": cam.layers[cam.layer][0], "width": cam.layers[cam.layer][1]},
    }
    return facts if rule is None else facts | {"threshold_rule": str(rule), "min_part": explainer.min_part}


def _remark(values: np.ndarray, marking: dt_grad_cam.Marking | None) -> str:
    if not values.any():
        return "no evidence for this class"
    return "" if marking is None else f"threshold {marking.threshold:.2f}, {marking.mask.mean():.0%} marked"


def _target_record(name: str, explanation: Explanation, marking: dt_grad_cam.Marking | None) -> dict[str, Any]:
    """Describe one map, for explanations.json."""
    record = {
        "class": name,
        "probability": explanation.probability,
        "map_max": float(explanation.map.max()),
        "map": explanation.map.astype(float).round(6).tolist(),
    }
    if marking is None:
        return record
    return record | {
        "threshold": marking.threshold,
        "marked_share": float(marking.mask.mean()),
        "parts": [{"area_px": dt_grad_cam.area(rings), "holes": len(rings) - 1} for rings in marking.parts],
    }
