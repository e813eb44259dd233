"""The first config for a new set of images, which `histojax init` writes."""

import dataclasses
import json
import pathlib
import statistics
from collections import Counter

from data_pipelines.image_folder.scan import Scan, known_scales, scales_differ
from data_pipelines.image_folder.spec import FolderSpec

_FEW = 2000  # images from which a network from random weights begins to learn more than colour
_STEPS = 20  # least number of steps per epoch for which a batch is chosen
_TEMPLATE = '''"""{description}

    histojax train --config {file} --workdir runs/{stem}

Written by `histojax init`. Every field of `histojax.training.default_config` can be set here or on the command line.
"""

from ml_collections import ConfigDict

from histojax.training import default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` may name another model, as in {file}:densenet121."""
    config = default_config.base()
    config.data.pipeline = "image_folder"
    config.data.task = "classes"
    config.data.magnification = ""
    config.data.root = {root}
{reading}
    # {split_note}
    config.data.split.protocol = "auto"

    config.data.augment.crop_scale = 0.6
    config.data.augment.colour_jitter = 0.1
    config.data.augment.stain_jitter = 0.05

    config.model.name = variant or {model}
    # {weights_note}
    config.model.pretrained = ""
    config.loss.class_weights = "inverse"  # rare classes count as much as frequent ones
    config.optimizer.learning_rate = {rate}
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = {batch}
    config.train.epochs = {epochs}
    config.compare.models = ({model}, {other})  # of histojax compare
    return config
'''


@dataclasses.dataclass(frozen=True)
class Overview:
    """What is known about images before training.

    Attributes:
      images: their number.
      classes: name -> number of images.
      groups: patients, cases, slides, sites -> their number, where they are known.
      scales: the known µm per pixel of images, sorted.
      copies: images whose pixels another one has as well.
      conflicts: sets of equal pixels with different classes.
      sizes: width and height of the smallest and of the largest image in pixels.
      bad: file -> why it cannot be used.
    """

    images: int
    classes: dict[str, int]
    groups: dict[str, int]
    scales: list[float]
    copies: int
    conflicts: int
    sizes: tuple[tuple[int, int], tuple[int, int]]
    bad: dict[str, str]

    def lines(self) -> list[str]:
        """Return the overview as text."""
        (w, h), (wide, high) = self.sizes
        same = (w, h) == (wide, high)
        groups = ", ".join(f"{count} {name}" for name, count in self.groups.items())
        lines = [
            f"images    {self.images}, {f'{w}×{h}' if same else f'{w}×{h} to {wide}×{high}'} pixels",
            f"classes   {', '.join(f'{name} {count}' for name, count in self.classes.items())}",
            f"groups    {groups or 'no patients, cases or slides are known'}",
            f"copies    images with the pixels of another one: {self.copies}",
        ]
        if self.scales:
            low, high_mpp = (f"{self.scales[i]:g}" for i in (0, -1))
            known = "" if len(self.scales) == self.images else f", known for {len(self.scales)} of {self.images} images"
            lines.append(f"scale     {low if low == high_mpp else f'{low} to {high_mpp}'} µm per pixel{known}")
        if scales_differ(self.scales):
            lines.append("warning   scales differ, and no image is resampled: bring the images to one scale beforehand")
        if self.conflicts:
            lines.append(f"conflict  pictures that stand in several classes: {self.conflicts}; correct their labels")
        return lines + [f"unusable  {name}: {reason}" for name, reason in list(self.bad.items())[:5]]


def overview(found: Scan) -> Overview:
    """Summarise a scan."""
    records = [image.record for image in found.images]
    pixels = Counter(record.pixel_hash for record in records)
    classes_of: dict[str, set[str]] = {}
    for record in records:
        classes_of.setdefault(record.pixel_hash, set()).add(record.label)
    fields = {"patients": "patient_id", "cases": "case_id", "slides": "slide_id", "sites": "site"}
    groups = {name: len({getattr(record, field) for record in records} - {""}) for name, field in fields.items()}
    sizes = sorted((image.size for image in found.images), key=lambda size: size[0] * size[1])
    return Overview(
        images=len(records),
        classes=found.summary["classes"],
        groups={name: count for name, count in groups.items() if count},
        scales=known_scales(records),
        copies=sum(count - 1 for count in pixels.values()),
        conflicts=sum(len(classes) > 1 for classes in classes_of.values()),
        sizes=(sizes[0], sizes[-1]),
        bad=found.summary["bad_images"],
    )


def config_text(root: pathlib.Path, spec: FolderSpec, seen: Overview, output: pathlib.Path, model: str) -> str:
    """Return the Python file of a first config.

    Args:
      root: what the images were read from.
      spec: how they were read.
      seen: what they are.
      output: the file to be written; its name is in the text.
      model: name of the model.
    """
    reading = [f"    config.data.images.columns.{name} = {_quoted(column)}" for name, column in spec.columns]
    if spec.table:
        reading.append(f"    config.data.images.table = {_quoted(spec.table)}")
    if spec.path_template:
        reading.append(f"    config.data.images.path_template = {_quoted(spec.path_template)}")
    if spec.group_pattern:
        reading.append(f"    config.data.images.group_pattern = {_quoted(spec.group_pattern)}")
    if len(seen.scales) == seen.images and not scales_differ(seen.scales):
        reading.append(f"    config.data.mpp = {statistics.median(seen.scales):g}  # µm per pixel")
    if seen.bad:
        reading.append('    config.data.on_bad_image = "skip"  # left out and counted in the results')
    if len(seen.classes) == 2:
        second = "malignant" if "malignant" in seen.classes else sorted(seen.classes)[1]
        reading.append(
            f"    config.data.images.positive = {_quoted(second)}  # the class that recall and AUROC are about"
        )
    known = [name for name in ("cases", "patients", "slides") if name in seen.groups]
    batch = 32
    while batch > 8 and seen.images * 0.6 / batch < _STEPS:
        batch //= 2
    few = seen.images < _FEW
    return _TEMPLATE.format(
        description=f"Images of {root.name}: {seen.images} of {len(seen.classes)} classes.".replace("\\", "/"),
        file=output.name,
        stem=output.stem,
        root=_quoted(str(root)),
        reading="\n".join(reading) + "\n" if reading else "",
        split_note=f"The strictest split that is known, here by {known[0]}. Others: docs/concepts/protocols.md"
        if known
        else "No patients are known, so single images are divided, which is optimistic: see --patient_pattern",
        model=_quoted(model),
        other=_quoted("densenet121" if model != "densenet121" else "resnet50"),
        weights_note="With so few images, begin with pretrained weights, and see docs/how-to/few-patients.md"
        if few
        else "A file of pretrained weights, if you have one",
        rate="1e-4" if model.startswith(("vgg", "vit", "swin", "dinov2", "ldcsf")) else "1e-3",
        batch=batch,
        epochs=30 if few else 50,
    )


def _quoted(text: str) -> str:
    """Return a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)
