"""Stroma percentages of held-out images with masks: from the predictions of their tiles, and from their masks."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from data_pipelines.images import check_image
from data_pipelines.liver_tiles import layouts, masks, scan
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.errors import RunError
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRSpec

_TILE_ID = r"^(?P<image>.*)@x(?P<x>\d+)y(?P<y>\d+)$"  # image and corner in a tile's image_id


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run and its predictions for its test images.

    Attributes:
      name: the run's name, for messages.
      predictions: its prediction table; only the rows of split `test` are used.
      root: dataset root with images and masks.
      tiles: how the tiles were cut.
      labels: label names, in the order of the mask values.
      thresholds: label to threshold.
    """

    name: str
    predictions: pd.DataFrame
    root: pathlib.Path
    tiles: TilesSpec
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]


def percentages(runs: Sequence[Run], spec: TSRSpec) -> pd.DataFrame:
    """Compute predicted and reference stroma percentages of all test images.

    Args:
      runs: the runs, such as the folds of one k-fold division.
      spec: how the percentage is measured; each run's own thresholds replace its thresholds.

    Returns:
      One row per test image, sorted by image: `run, image, tiles, predicted, reference`. The percentages are in
      0 … 100; `predicted` is measured on the tiles, `reference` on the pixels of the mask. They are nan without tumor
      and stroma.

    Raises:
      RunError: a run has no test images, its tiles were not cut from images with masks, or two runs share a test image.
    """
    rows = [row for run in runs for row in _rows(run, spec)]
    table = pd.DataFrame(rows).sort_values("image", ignore_index=True)
    repeated = table.loc[table["image"].duplicated(), "image"].tolist()
    if repeated:
        raise RunError(
            f"{', '.join(repeated)}: held out by more than one run; pass the folds of one k-fold division "
            "(data.split.kfolds), so that every image counts once"
        )
    return table


def _rows(run: Run, spec: TSRSpec) -> Iterator[dict[str, object]]:
    """The rows of one run's test images."""
    table = run.predictions[run.predictions["split"] == "test"]
    parts = table["image_id"].str.extract(_TILE_ID)
    if table.empty or parts["image"].isna().any():
        raise RunError(f"{run.name}: the test split has no tiles cut from images with masks")
    dataset = layouts.find(run.root, run.tiles)
    ids = scan.image_ids(dataset.items, run.root)
    files = {ids[item.path]: item for item in dataset.items}
    stride = run.tiles.stride or run.tiles.size
    spec = dataclasses.replace(
        spec, thresholds=run.thresholds, min_tumor_mm2=0.0, min_tissue_mm2=0.0, resamples=1, tumor_distance_um=0.0
    )
    for image, group in table.groupby(parts["image"]):
        item = files.get(str(image))
        if item is None or item.mask is None:
            raise RunError(f"{run.name}: image {image} is missing from {run.root}, or its mask is")
        size = check_image(item.path.read_bytes())
        mask = masks.read_mask(item.mask, size.height, size.width)
        corner = parts.loc[group.index, ["x", "y"]].astype(int)
        tiles = pd.DataFrame({"row": corner["y"] // stride, "column": corner["x"] // stride, "tissue": 1.0})
        for name in run.labels:
            tiles[PREFIX + name] = group[PREFIX + name]
        # A percentage does not depend on the unit of area, so any µm/px will do.
        measured = tsr.measure(tiles, Geometry(size.width, size.height, 1.0, run.tiles.size, stride), spec)
        predicted = measured["areas"]["whole tissue"]["stroma_percentage"]["value"]
        yield {
            "run": run.name,
            "image": str(image),
            "tiles": len(tiles),
            "predicted": np.nan if predicted is None else predicted,
            "reference": _mask_percentage(mask, run, spec),
        }


def _mask_percentage(mask: np.ndarray, run: Run, spec: TSRSpec) -> float:
    """The stroma percentage of a mask's pixels; nan without tumor and stroma."""
    values = dict(zip(run.labels, run.tiles.mask_values or range(len(run.labels)), strict=True))
    pixels = np.bincount(mask.ravel(), minlength=256)
    tumor, stroma = int(pixels[values[spec.tumor]]), int(pixels[values[spec.stroma]])
    return 100 * stroma / (tumor + stroma) if tumor + stroma else float("nan")
