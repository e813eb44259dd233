"""`histojax slide …`: slides to maps and ratios, annotations to tiles, and how well ratios agree with masks."""

import argparse
import dataclasses
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from histojax.cli import console
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

if TYPE_CHECKING:
    from histojax.inference.predictor import Predictor
    from histojax.slides import cohort
    from histojax.slides.tsr.spec import TSRSpec

_log = logging.getLogger(__name__)
_NEEDED = ("openslide", "tifffile", "imagecodecs", "shapely", "matplotlib", "jinja2")
_TUMOR, _STROMA = ("tumor", "tumour", "malignant"), ("stroma", "interstitial")
_NECROSIS = ("necrosis",)


def main(words: list[str]) -> None:
    """Runs `histojax slide` with these words; whatever a user can mend is told in words, with exit code 1."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: slides need {', '.join(missing)}: pip install 'histojax[slides]'")
    if words[:1] == ["train-tiles"]:
        _train_tiles(words[1:])
    elif words[:1] == ["agreement"]:
        _agreement(words[1:])
    else:
        _slides(words)


def _slides(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "histojax slide",
        description="Tiles, maps and tumor-to-stroma ratio of slides. Research use only. "
        "Also: histojax slide train-tiles, histojax slide agreement.",
    )
    parser.add_argument("run", type=pathlib.Path, help="work directory or checkpoint of the model")
    parser.add_argument("slides", nargs="+", help="slides, folders of them, lists (.csv: slide[,mpp[,roi]])")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder; finished slides in it are kept")
    parser.add_argument("--mpp", type=float, help="µm per level-0 pixel of slides that do not say it, or say it wrong")
    parser.add_argument("--roi", type=pathlib.Path, help="GeoJSON of the region of interest, or folder of NAME.geojson")
    parser.add_argument("--tile_um", type=float, help="side of a tile in µm; default: that of the training tiles")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of a tile's side, in [0, 1)")
    parser.add_argument("--min_tissue", type=float, default=0.5, help="least share of tissue in a tile")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=4, help="that read the slide")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only every N-th slide, from the I-th (0 …) on")
    parser.add_argument("--gzip", action="store_true", help="writes tiles.geojson.gz")
    parser.add_argument("--redo", action="store_true", help="works on finished slides again")
    _add_ratio(parser)
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        from histojax.core import shards
        from histojax.slides import cohort, cohort_jobs
        from histojax.slides.grid import GridSpec

        chosen = shards.share(cohort_jobs.find(given.slides, given.mpp, given.roi), given.shard)
        predictor = _predictor(given.run, given.batch_size)
        model = _model(predictor, given.tile_um)
        GridSpec(model.image_size, model.tile_um / model.image_size, given.overlap, given.min_tissue)  # told at once
        settings = cohort.Settings(
            overlap=given.overlap,
            min_tissue=given.min_tissue,
            tsr=_ratio(given, model.labels, model.thresholds),
            threads=given.threads,
            compress=given.gzip,
        )
        failed = cohort.run(chosen, model, settings, given.output, redo=given.redo)
        print(f"{len(chosen) - failed} of {len(chosen)} slides are in {given.output}; see slides.csv")
        if failed:
            sys.exit(f"error: {failed} of {len(chosen)} slides failed; column `reason` of slides.csv says why")


def _add_ratio(parser: argparse.ArgumentParser) -> None:
    """The options of the tumor-to-stroma ratio; defaults of the numbers are TSRSpec's."""
    group = parser.add_argument_group("tumor-to-stroma ratio")
    group.add_argument("--tumor", help=f"label of tumor; default: the first there is of {', '.join(_TUMOR)}")
    group.add_argument("--stroma", help=f"label of stroma; default: the first there is of {', '.join(_STROMA)}")
    group.add_argument("--necrosis", help=f"label of necrosis; default: {_NECROSIS[0]}, if there")
    group.add_argument("--measure", help="label (default; one class a tile: probability) or probability")
    group.add_argument("--policy", help="tiles of both: probability (default), half, both")
    group.add_argument("--cutoff", help="default (> 50 %%), colon (> 50 %%), hcc (>= 50 %%)")
    for name, words in (
        ("block_um", "side of the bootstrap's blocks"),
        ("hot_spot_um", "side of the hot-spot field"),
        ("tumor_distance_um", "stroma counts within this distance of tumor; 0: all"),
        ("min_tumor_mm2", "less tumor is not evaluable"),
        ("min_tissue_mm2", "less tissue is not evaluable"),
    ):
        group.add_argument(f"--{name}", type=float, help=words)
    group.add_argument("--resamples", type=int, help="of the bootstrap")
    group.add_argument("--seed", type=int, help="of the bootstrap")


def _ratio(given: argparse.Namespace, labels: Sequence[str], thresholds: Any) -> "TSRSpec | None":
    """How the ratio is measured; None, and a line that says so, where the model has no label for tumor or stroma.

    Raises:
      RunError: a label that was named and is not there, a value out of range.
    """
    from histojax.slides.tsr.spec import TSRSpec

    found: dict[str, Any] = {
        name: getattr(given, name) or next((label for label in known if label in labels), "")
        for name, known in (("tumor", _TUMOR), ("stroma", _STROMA), ("necrosis", _NECROSIS))
    }
    if not (found["tumor"] and found["stroma"]):
        lacking = "tumor" if not found["tumor"] else "stroma"
        _log.info(
            "no tumor-to-stroma ratio: none of the labels %s is known to be %s (--%s names it)",
            ", ".join(labels), lacking, lacking,
        )  # fmt: skip
        return None
    named = {field.name for field in dataclasses.fields(TSRSpec)} - found.keys() - {"thresholds"}
    fields: dict[str, Any] = {name: getattr(given, name) for name in named if getattr(given, name) is not None}
    if thresholds is None:
        fields.setdefault("measure", "probability")
    spec = TSRSpec(thresholds=dict(thresholds or {}), **found, **fields)
    spec.check_labels(labels)
    return spec


def _predictor(run: pathlib.Path, batch_size: int) -> "Predictor":
    # Behind the flags: --help and a misspelt one need no jax.
    from histojax.distributed import runtime
    from histojax.inference.predictor import Predictor

    runtime.prepare()
    return Predictor.load(run, batch_size=batch_size)


def _model(predictor: "Predictor", tile_um: float | None) -> "cohort.Model":
    """What a cohort asks of a predictor.

    Raises:
      RunError: neither --tile_um nor the checkpoint says how large in µm its tiles are.
    """
    from histojax.slides import cohort

    trained = predictor.trained
    pixels, mpp = trained.meta["data"].get("tile_pixels"), trained.config.data.get("mpp", 0.0)
    if tile_um is None:
        if not (pixels and mpp):
            lacking = "how many µm a pixel of its images is (data.mpp)" if pixels else "one size of its images"
            raise RunError(
                f"{trained.path}: the checkpoint does not know {lacking}, so the side of its tiles in µm is not known: "
                "give it with --tile_um (side of a training image in pixels × its µm per pixel)"
            )
        tile_um = pixels * mpp
    if not tile_um > 0:
        raise RunError(f"--tile_um={tile_um} is not a length above 0")
    return cohort.Model(
        labels=predictor.classes,
        thresholds=predictor.thresholds,
        image_size=predictor.image_size,
        tile_um=tile_um,
        batch_size=predictor.batch_size,
        stream=predictor.stream,
        confusion=trained.meta.get("confusion"),
        facts={
            "name": trained.config.model.name,
            "checkpoint": predictor.digest,
            "step": trained.meta["step"],
            "image_size": predictor.image_size,
            "protocol": trained.meta["split"]["protocol"],
            "data": trained.meta["data"]["description"],
        },
    )


def _train_tiles(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "histojax slide train-tiles",
        description="Labelled tiles for training, from slides and annotations that QuPath exported as GeoJSON.",
    )
    parser.add_argument("slides", nargs="+", help="slides, folders of them, lists (.csv: slide[,mpp])")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to be made: a data.root")
    parser.add_argument("--annotations", type=pathlib.Path, help="folder of NAME.geojson; default: beside the slides")
    parser.add_argument("--labels", required=True, help="of the tiles, as tumor,stroma")
    parser.add_argument("--size", type=int, default=224, help="pixels of a tile's side")
    parser.add_argument("--tile_mpp", type=float, required=True, help="µm per pixel of the tiles")
    parser.add_argument("--mpp", type=float, help="µm per level-0 pixel of slides that do not say it, or say it wrong")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of a tile's side, in [0, 1)")
    parser.add_argument("--min_share", type=float, default=0.05, help="of a tile that a label must cover")
    parser.add_argument("--min_annotated", type=float, default=0.5, help="of a tile that annotations must cover")
    parser.add_argument(
        "--classes", action="append", default=[], metavar="CLASS=LABEL", help="CLASS= is tissue of no label"
    )
    parser.add_argument("--ignore_unknown", action="store_true", help="leaves annotations of other classes out")
    parser.add_argument("--patient_pattern", default="", help="regular expression on slide names with (?P<patient>…)")
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        from histojax.slides import annotations, cohort_jobs

        found = cohort_jobs.find(given.slides, given.mpp)
        pairs = annotations.pair([job.slide for job in found], given.annotations)
        pairs = [dataclasses.replace(pair, mpp=job.mpp) for pair, job in zip(pairs, found, strict=True)]
        unnamed = [text for text in given.classes if "=" not in text]
        if unnamed:
            raise RunError(f"--classes={unnamed[0]} is not CLASS=LABEL")
        spec = annotations.CutSpec(
            labels=tuple(name.strip() for name in given.labels.split(",") if name.strip()),
            size=given.size,
            mpp=given.tile_mpp,
            overlap=given.overlap,
            min_share=given.min_share,
            min_annotated=given.min_annotated,
            class_names=dict(text.rsplit("=", 1) for text in given.classes),
            ignore_unknown=given.ignore_unknown,
            patient_pattern=given.patient_pattern,
        )
        record = annotations.cut(pairs, given.output, spec)
        for name, facts in record["slides"].items():
            counts = ", ".join(f"{label} {n}" for label, n in facts["tiles_of_label"].items())
            print(f"{name}: {facts['tiles']} tiles ({counts})")
            for warning in facts["warnings"]:
                print(f"  warning: {warning}")
        labels = ",".join(f"'{label}'" for label in spec.labels)
        print(
            f"{record['tiles']} tiles in {given.output}; train on them with --config.data.root={given.output} "
            f'--config.data.mpp={spec.mpp:g} --config.data.tiles.labels="({labels},)"'
        )


def _agreement(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "histojax slide agreement",
        description="Stroma percentage of the runs' test images as predicted, against that of their masks.",
    )
    parser.add_argument(
        "runs", nargs="+", type=pathlib.Path, help="work directories: one, or the folds of one division"
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for agreement.json and .csv")
    _add_ratio(parser)
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        from histojax.core.files import write_json
        from histojax.data.sources import tiles_spec
        from histojax.evaluation import predictions
        from histojax.slides.tsr import agreement, held_out
        from histojax.training import checkpoint

        runs = []
        for path in given.runs:
            meta = checkpoint.read_meta(checkpoint.find(path))
            data, labels = meta["config"]["data"], tuple(meta["classes"])
            if meta["thresholds"] is None:
                raise RunError(f"{path}: a model of one class an image; agreement is of tiles with several labels")
            runs.append(
                held_out.Run(
                    name=path.name,
                    predictions=predictions.read(path / "predictions.parquet"),
                    root=pathlib.Path(data["root"]),
                    tiles=tiles_spec(data["tiles"]),
                    labels=labels,
                    thresholds=dict(zip(labels, meta["thresholds"], strict=True)),
                )
            )
        spec = _ratio(given, runs[0].labels, runs[0].thresholds)
        if spec is None:
            raise RunError("there is no ratio to compare")
        table = held_out.percentages(runs, spec)
        figures = agreement.agreement(
            table["predicted"].to_numpy(), table["reference"].to_numpy(), resamples=spec.resamples, seed=spec.seed
        )
        given.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(given.output / "agreement.csv") as temporary:
            table.to_csv(temporary, index=False)
        write_json(given.output / "agreement.json", {"rules": spec.sentences(), "figures": figures})
        print(f"stroma percentage of {len(table)} held-out images: {'; '.join(spec.sentences())}")
        print(agreement.lines(figures))
