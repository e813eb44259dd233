"""Do distances of features tell images of another kind from test images of new patients, better than colour alone?

    python benchmarks/novelty.py RUN... --data ../shared/data --output novelty.json

Each RUN is a fold of BreakHis by case, after `histojax novelty RUN`. Its test images, of patients whom its model never
saw, are compared with images of other kinds. Three distances are compared: Mahalanobis and nearest neighbours of the
run's features, and as baseline Mahalanobis of six colour figures (mean and standard deviation of red, green and blue),
estimated in the same way from the same training images. An AUROC is the mean over the folds. Intervals: bootstrap over
the patients of the test images and, independently, over the units of the others.
"""

import argparse
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.breakhis import filenames
from data_pipelines.pixels import resize
from data_pipelines.splits import Split
from histojax.core import machine
from histojax.data.pipeline import eval_batches
from histojax.data.sources import open_dataset
from histojax.distributed import runtime
from histojax.evaluation import bootstrap
from histojax.evaluation.novelty import COLUMNS, UNLIKE, Gaussian
from histojax.inference.novelty.scorer import NoveltyScorer
from histojax.inference.predictor import Predictor
from histojax.slides.readers.reader import open_slide
from histojax.slides.tissue import TissueSpec, find_tissue
from histojax.training import build

_SIDE = 224  # of tiles cut from slides, in pixels of their level 0
_MOST = 100  # tiles of one slide, chosen at random
_RESAMPLES = 2000
KINDS = {
    "held_out": "new patients, as trained",
    "colorectal": "colorectal tiles, H&E",
    "lung": "lung images, H&E",
    "cptac": "tiles of a CPTAC section, H&E",
    "cmu": "tiles of CMU-1, H&E",
    "glass": "glass of the CPTAC slide",
    "ihc": "parts of one IHC image (DAB)",
    "breakhis_40x": "BreakHis at 40X",
}
DISTANCES = {"mahalanobis": 0, "knn": 2}  # position in `COLUMNS`

Images = tuple[list[np.ndarray], list[str]]  # pixels, and the unit of each image


def main() -> None:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="work directory of a fold")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the images of other kinds")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    runtime.prepare()
    others = {name: images for name, images in _others(args.data) if images[0]}
    folds = [_measure(run, others) for run in args.runs]
    rows = {"held_out": _held_out(folds)} | {name: _compare(folds, name, units) for name, (_, units) in others.items()}
    rows = {name: {"kind": KINDS[name], **row} for name, row in rows.items()}
    host = machine.describe()
    args.output.write_text(json.dumps({"rows": rows, "machine": host}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


def _others(data: pathlib.Path) -> Iterator[tuple[str, Images]]:
    """Yield the images of other kinds, by name of the row."""
    tiles = sorted((data / "crc_tiles").glob("*/*.jpg"))
    yield "colorectal", ([_read(path) for path in tiles], [path.name for path in tiles])
    images = sorted((data / "wsss4luad_part" / "img").glob("*.png"))
    yield "lung", ([_read(path) for path in images], [path.name for path in images])
    section = data / "slides" / "C3L-00601-26_stitched_pyramid.tif"
    yield "cptac", _tiles(section, 0.5, glass=False)  # the file states no µm/px: only the search for tissue uses it
    yield "cmu", _tiles(data / "slides" / "cmu-1-small-region.svs", None, glass=False)
    yield "glass", _tiles(section, 0.5, glass=True)
    yield "ihc", _ihc()
    paths = sorted((data / "BreaKHis_v1_part").glob("**/40X/*.png"))
    # The training images were made of such files in the same way.
    small = [np.asarray(Image.fromarray(_read(path)).resize((224, 224), Image.Resampling.BICUBIC)) for path in paths]
    yield "breakhis_40x", (small, [filenames.parse(path.name).patient_id for path in paths])


def _read(path: pathlib.Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _tiles(path: pathlib.Path, mpp: float | None, *, glass: bool) -> Images:
    """Cut tiles with at least half tissue, or without any, from a slide."""
    with open_slide(path, mpp) as slide:
        tissue = find_tissue(slide, TissueSpec())
        steps = (range(0, side - _SIDE + 1, _SIDE) for side in (slide.width, slide.height))
        boxes = np.array([(x, y, _SIDE, _SIDE) for x, y in itertools.product(*steps)])
        fractions = tissue.fractions(boxes)
        boxes = boxes[fractions == 0 if glass else fractions >= 0.5]
        chosen = np.sort(np.random.default_rng(0).permutation(len(boxes))[:_MOST])
        tiles = [slide.read(*map(int, boxes[i]), _SIDE, _SIDE) for i in chosen]
    return tiles, [path.name] * len(tiles)


def _ihc() -> Images:
    """Cut the picture of colonic glands of scikit-image, with DAB and hematoxylin, into 16 parts."""
    from skimage.data import immunohistochemistry

    picture = immunohistochemistry()
    corners = range(0, 512, 128)
    return [picture[y : y + 128, x : x + 128] for y in corners for x in corners], ["ihc.png"] * 16


def _measure(run: pathlib.Path, others: dict[str, Images]) -> dict[str, Any]:
    """Compute the distances of one fold: of its test images with their patients, and of the others."""
    predictor = Predictor.load(run)
    scorer = NoveltyScorer.of_predictor(predictor)
    if scorer is None:
        raise SystemExit(f"{run}: run `histojax novelty {run}` first")
    trained = predictor.trained
    dataset = open_dataset(trained.config.data, trained.meta["classes"])
    split = dataset.place(Split.from_json(trained.meta["split"]))
    spec = build.loader_spec(trained.config, trained.layout, training=False)

    def pixels(side: str) -> list[np.ndarray]:
        batches = eval_batches(dataset, split.indices(side), spec)
        return [image for batch in batches for image in batch["image"][batch["mask"]]]

    colour = Gaussian.fit(np.stack([_colours(image) for image in pixels("train")]))

    def score(images: Sequence[np.ndarray]) -> dict[str, Any]:
        images = [resize(image, predictor.image_size) for image in images]
        starts = range(0, len(images), predictor.batch_size)
        batches = (np.stack(images[start : start + predictor.batch_size]) for start in starts)
        rows = [row for batch in scorer.stream(batches) for row in batch]
        found: dict[str, Any] = {name: np.array([row[i] for row in rows], float) for name, i in DISTANCES.items()}
        found["colour"] = np.array([colour.distance(_colours(image)) for image in images])
        found["unlike"] = np.array([float(row[1]) >= UNLIKE for row in rows])
        found["flags"] = [row[COLUMNS.index("novelty_flags")] for row in rows]
        return found

    patients = dataset.records.take(split.indices("test")).column("patient_id").tolist()
    scored = {name: score(images) for name, (images, _) in others.items()}
    return {"patients": patients, "held_out": score(pixels("test")), **scored}


def _colours(image: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of red, green and blue, [6]."""
    return np.concatenate([image.mean((0, 1)), image.std((0, 1))])


def _held_out(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many test images of new patients are called unlike the training images."""
    patients = [patient for fold in folds for patient in fold["patients"]]
    unlike = np.concatenate([fold["held_out"]["unlike"] for fold in folds])
    _, unit, count = bootstrap.units(np.array(patients))
    sums = bootstrap.unit_sums(np.stack([unlike, np.ones(len(unlike))], 1), unit, count)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn = weights @ sums
        return {"unlike": drawn[:, 0] / drawn[:, 1]}

    found = bootstrap.intervals(statistic, count, n_resamples=_RESAMPLES)["unlike"]
    return {"images": len(unlike), "units": count, "unlike": found, "flags": _flags(folds, "held_out")}


def _compare(folds: Sequence[dict[str, Any]], name: str, units: Sequence[str]) -> dict[str, Any]:
    """AUROC of each distance between the test images and those of another kind, and differences from colour."""
    names, other = np.unique(units, return_inverse=True)
    n_others = len(names)
    patients = sorted({patient for fold in folds for patient in fold["patients"]})
    rng = np.random.default_rng(0)
    ones = np.ones((1, len(patients))), np.ones((1, n_others))
    drawn = [
        np.concatenate([one, rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)])
        for one, n in zip(ones, (len(patients), n_others), strict=True)
    ]
    auroc = {}
    for distance in (*DISTANCES, "colour"):
        values = []
        for fold in folds:
            inside, outside = fold["held_out"][distance], fold[name][distance]
            wins = (outside[None] > inside[:, None]) + 0.5 * (outside[None] == inside[:, None])
            patient = np.searchsorted(patients, fold["patients"])
            rows = bootstrap.unit_sums(wins, patient, len(patients))
            table = bootstrap.unit_sums(rows.T, other, n_others).T
            sizes = np.bincount(patient, minlength=len(patients)), np.bincount(other, minlength=n_others)
            pairs = (drawn[0] @ sizes[0]) * (drawn[1] @ sizes[1])
            with np.errstate(invalid="ignore"):  # no patient of the fold was drawn
                values.append(((drawn[0] @ table) * drawn[1]).sum(1) / pairs)
        auroc[distance] = np.nanmean(values, axis=0)
    return {
        "images": len(units),
        "units": n_others,
        **{distance: _estimate(value) for distance, value in auroc.items()},
        **{f"{distance}_minus_colour": _estimate(auroc[distance] - auroc["colour"]) for distance in DISTANCES},
        "unlike": {"value": float(np.mean([fold[name]["unlike"].mean() for fold in folds])), "low": None, "high": None},
        "flags": _flags(folds, name),
    }


def _estimate(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def _flags(folds: Sequence[dict[str, Any]], name: str) -> str:
    """Share of images, over all folds, with each flag of the pixels, as text."""
    flags = [flag for fold in folds for flag in fold[name]["flags"]]
    names = {part for flag in flags for part in flag.split("; ") if part} - {"unlike training"}
    shares = {part: sum(part in flag.split("; ") for flag in flags) / len(flags) for part in sorted(names)}
    return "; ".join(f"{part}: {100 * share:.1f} %" for part, share in shares.items()) or "none"


if __name__ == "__main__":
    main()
