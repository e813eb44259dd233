"""`histojax slide`: whole slides to tiles, maps and tumor-to-stroma ratios."""

import argparse
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from histojax.cli import flags, slide_ratio
from histojax.cli.parser import CommandParser, add_verb
from histojax.core import extras

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers
    from histojax.slides import cohort


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax slide`."""
    parser = add_verb(
        subparsers,
        "slide",
        run,
        summary="tiles, maps and tumor-to-stroma ratio of whole slides",
        description="Predicts the tissue tiles of whole slides, and writes tables, GeoJSON, maps and the "
        "tumor-to-stroma ratio. A slide that fails is reported and skipped. Rerun the same command to resume. "
        "Research use only. See also: histojax slide train-tiles, histojax slide agreement, "
        "histojax slide outcome.",
        examples=["histojax slide runs/ldcsf SLIDES --output slides_out"],
    )
    flags.add_run(parser)
    parser.add_argument(
        "slides",
        metavar="SLIDE",
        nargs="+",
        help="slides, folders of slides, lists (.csv: slide[,mpp][,roi][,name][,override_mpp][,patient_id])",
    )
    flags.add_output(parser, "folder to write; slides that it already holds are kept")
    add_slide_mpp(parser)
    add_origin(parser)
    parser.add_argument(
        "--roi",
        metavar="PATH",
        type=pathlib.Path,
        help="region of interest (GeoJSON of QuPath, XML of ASAP or ImageScope), or folder with one per slide, named "
        "like it",
    )
    parser.add_argument(
        "--tile_um", metavar="UM", type=float, help="side of a tile in µm (default: that of the training tiles)"
    )
    add_overlap(parser)
    add_min_tissue(parser)
    flags.add_batch_size(parser)
    flags.add_threads(parser, "threads that read the slide")
    flags.add_shard(parser, "slide")
    parser.add_argument("--gzip", action="store_true", help="write tiles.geojson.gz instead of tiles.geojson")
    flags.add_redo(parser, "process finished slides again")
    slide_ratio.add_flags(parser)
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def add_slide_mpp(parser: "argparse._ActionsContainer") -> None:
    """Add `--mpp` and `--override_mpp`, which `histojax slide train-tiles` and `histojax embed` share."""
    parser.add_argument("--mpp", metavar="UM", type=float, help="µm per level-0 pixel of slides that state none")
    parser.add_argument(
        "--override_mpp",
        metavar="UM",
        type=float,
        help="µm per level-0 pixel of all slides, whatever they state; every result warns of it",
    )


def add_origin(parser: "argparse._ActionsContainer") -> None:
    """Add `--origin`, which `histojax slide train-tiles` shares."""
    parser.add_argument(
        "--origin",
        choices=("qupath", "level0"),
        default="qupath",
        help="where coordinates count from in a slide of which only a part was scanned (MRXS, SCN): that part, as in "
        "QuPath, or the whole level 0, as in OpenSlide (default: qupath)",
    )


def add_overlap(parser: "argparse._ActionsContainer") -> None:
    """Add `--overlap`, which `histojax slide train-tiles` and `histojax embed` share."""
    parser.add_argument(
        "--overlap",
        metavar="FRACTION",
        type=float,
        default=0.0,
        help="overlap of neighbouring tiles as a fraction of their side, from 0 to below 1 (default: 0)",
    )


def add_min_tissue(parser: "argparse._ActionsContainer") -> None:
    """Add `--min_tissue`, which `histojax slide train-tiles` and `histojax embed` share."""
    parser.add_argument(
        "--min_tissue",
        metavar="FRACTION",
        type=float,
        default=0.5,
        help="least tissue in a tile, as a fraction (default: 0.5)",
    )


def run(args: argparse.Namespace) -> None:
    """Process slides; exit code 1 if one failed."""
    extras.require("slides", "histojax slide")
    from histojax.core import shards
    from histojax.slides import cohort, cohort_jobs
    from histojax.slides.grid import GridSpec

    jobs = cohort_jobs.find(args.slides, args.mpp, args.roi, override_mpp=args.override_mpp, output=args.output)
    jobs = [dataclasses.replace(job, origin=args.origin) for job in shards.share(jobs, args.shard)]
    model = _model(args)
    # Checks the values now, not when the first slide is open.
    GridSpec(model.image_size, model.tile_um / model.image_size, args.overlap, args.min_tissue)
    settings = cohort.Settings(
        overlap=args.overlap,
        min_tissue=args.min_tissue,
        tsr=slide_ratio.ratio_spec(args, model.labels, model.thresholds),
        threads=args.threads,
        compress=args.gzip,
    )
    failed = cohort.run(jobs, model, settings, args.output, redo=args.redo)
    print(f"{len(jobs) - failed} of {len(jobs)} slides are in {args.output}; see slides.csv")
    if failed:
        sys.exit(f"error: {failed} of {len(jobs)} slides failed; the column `reason` of slides.csv says why")


def _model(args: argparse.Namespace) -> "cohort.Model":
    # Only now, so that a wrong flag or path is reported without waiting for jax.
    from histojax.distributed import runtime
    from histojax.inference.predictor import Predictor
    from histojax.inference.slide_model import slide_model

    runtime.prepare()
    return slide_model(Predictor.load(args.run_path, batch_size=args.batch_size), args.tile_um)
