"""The true label of an image that is explained, where it is known."""

import pathlib
from collections.abc import Sequence

from data_pipelines.breakhis import filenames
from data_pipelines.records import label_set
from histojax.inference.predict.images import ImageRef


def true_label(ref: ImageRef, classes: Sequence[str]) -> str:
    """Return the label that a list states, or that the image's folder or BreakHis name implies.

    Args:
      ref: the image.
      classes: classes or labels of the model.

    Returns:
      The label; empty if it is not known.
    """
    if stated := ref.facts.get("label"):
        return stated
    path = pathlib.PurePath(ref.member or ref.path)
    folder = path.parent.name
    if folder and set(label_set(folder)) <= set(classes):
        return folder
    try:
        name = filenames.parse(path.name)
    except filenames.BadNameError:
        return ""
    return next(
        (label for label in (name.label, name.subtype, filenames.SUBTYPE_NAMES[name.subtype]) if label in classes), ""
    )
