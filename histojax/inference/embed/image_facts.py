"""Facts about the images of a file of features: names relative to their folder, label, patient, case and split."""

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence

from data_pipelines.breakhis import filenames
from histojax.core.printable import printable
from histojax.evaluation.feature_files import FACTS
from histojax.inference.predict.images import ImageRef, names_of

Facts = Mapping[str, str | None]
_SPLIT_FILE = "split.csv"


def relative_ids(refs: Sequence[ImageRef], paths: Sequence[str]) -> list[str]:
    """Return the name of each image: its path relative to the folder or archive that was given.

    Where that would give two images the same name, all keep their paths as given.

    Args:
      refs: the images.
      paths: as given on the command line.
    """
    roots = [printable(os.path.expanduser(path)).rstrip("/") + "/" for path in paths]
    ids = [next((ref.image_id[len(r) :] for r in roots if ref.image_id.startswith(r)), ref.image_id) for ref in refs]
    return ids if len(set(ids)) == len(ids) else [ref.image_id for ref in refs]


def read_split(checkpoint: pathlib.Path) -> dict[str, dict[str, str]]:
    """Read the split of a checkpoint's run.

    Args:
      checkpoint: folder of the checkpoint, within the run's work directory.

    Returns:
      The rows of `split.csv` by image_id; empty if the run's folder has no such file.
    """
    path = next((folder / _SPLIT_FILE for folder in checkpoint.parents[:3] if (folder / _SPLIT_FILE).is_file()), None)
    if path is None:
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}


def image_facts(ref: ImageRef, split: Mapping[str, Mapping[str, str]]) -> Facts:
    """Collect what is known about an image: from a list, else from the run's split, else from a BreakHis file name.

    Args:
      ref: the image.
      split: as `read_split` returns it.

    Returns:
      The values of `FACTS`; None: unknown.
    """
    path = ref.member or ref.path
    facts: dict[str, str] = {}
    names = [ref.image_id, *names_of(path)]
    try:
        name = filenames.parse(pathlib.PurePosixPath(path).name)
        facts = {"label": name.label, "patient_id": name.patient_id, "case_id": name.case_id}
        names.append(name.image_id)
    except filenames.BadNameError:
        pass
    row = next((split[name] for name in names if name in split), {})
    facts |= {key: value for key, value in [*row.items(), *ref.facts.items()] if value}
    return {key: facts.get(key) for key in FACTS}
