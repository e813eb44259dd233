"""The stroma percentage of held-out images with masks, as their tiles are predicted and as their masks have it."""

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

_CORNER = r"^(?P<image>.*)@x(?P<x>\d+)y(?P<y>\d+)$"  # of a tile's image_id


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run says of its test images.

    Attributes:
      name: for messages.
      predictions: its table of predictions; the rows of split `test` count.
      root: the folder of its images and masks.
      tiles: how they were cut.
      labels: in the order of the mask's values.
      thresholds: of each label.
    """

    name: str
    predictions: pd.DataFrame
    root: pathlib.Path
    tiles: TilesSpec
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]


def percentages(runs: Sequence[Run], spec: TSRSpec) -> pd.DataFrame:
    """A row a test image: `run, image, tiles, predicted, reference`, stroma percentages in 0 … 100, by image.

    `predicted` is that of its tiles by `spec`, with each run's own thresholds, `reference` that of the pixels of its
    mask; nan where there is neither tumor nor stroma.

    Raises:
      RunError: a run whose tiles were not cut from images with masks, that has no test images, or that shares a test
        image with another.
    """
    rows = [row for run in runs for row in _rows(run, spec)]
    table = pd.DataFrame(rows).sort_values("image", ignore_index=True)
    twice = table.loc[table["image"].duplicated(), "image"].tolist()
    if twice:
        raise RunError(
            f"{', '.join(twice)}: held out by more than one of the runs; give the folds of one k-fold division "
            "(data.split.kfolds), so that every image is counted once"
        )
    return table


def _rows(run: Run, spec: TSRSpec) -> Iterator[dict[str, object]]:
    table = run.predictions[run.predictions["split"] == "test"]
    where = table["image_id"].str.extract(_CORNER)
    if table.empty or where["image"].isna().any():
        raise RunError(f"{run.name}: its test side holds no tiles that were cut from images with masks")
    found = layouts.find(run.root, run.tiles)
    ids = scan.image_ids(found.items, run.root)
    files = {ids[item.path]: item for item in found.items}
    stride = run.tiles.stride or run.tiles.size
    spec = dataclasses.replace(
        spec, thresholds=run.thresholds, min_tumor_mm2=0.0, min_tissue_mm2=0.0, resamples=1, tumor_distance_um=0.0
    )
    for image, group in table.groupby(where["image"]):
        item = files.get(str(image))
        if item is None or item.mask is None:
            raise RunError(f"{run.name}: its image {image} is not below {run.root} any more, or has no mask there")
        size = check_image(item.path.read_bytes())
        mask = masks.read_mask(item.mask, size.height, size.width)
        corner = where.loc[group.index, ["x", "y"]].astype(int)
        tiles = pd.DataFrame({"row": corner["y"] // stride, "column": corner["x"] // stride, "tissue": 1.0})
        for name in run.labels:
            tiles[PREFIX + name] = group[PREFIX + name]
        # Areas cancel out of a percentage: any µm/px will do.
        measured = tsr.measure(tiles, Geometry(size.width, size.height, 1.0, run.tiles.size, stride), spec)
        predicted = measured["areas"]["whole tissue"]["stroma_percentage"]["value"]
        yield {
            "run": run.name,
            "image": str(image),
            "tiles": len(tiles),
            "predicted": np.nan if predicted is None else predicted,
            "reference": _of_mask(mask, run, spec),
        }


def _of_mask(mask: np.ndarray, run: Run, spec: TSRSpec) -> float:
    values = dict(zip(run.labels, run.tiles.mask_values or range(len(run.labels)), strict=True))
    pixels = np.bincount(mask.ravel(), minlength=256)
    tumor, stroma = int(pixels[values[spec.tumor]]), int(pixels[values[spec.stroma]])
    return 100 * stroma / (tumor + stroma) if tumor + stroma else float("nan")
