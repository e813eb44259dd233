"""`histojax slide train-tiles`: slides and their annotations to labelled tiles."""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.cli.slide import add_min_tissue, add_origin, add_overlap, add_slide_mpp
from histojax.core import extras
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax slide train-tiles`."""
    parser = add_verb(
        subparsers,
        "slide train-tiles",
        run,
        summary="labelled training tiles from slides and QuPath annotations",
        description="Cuts labelled tiles for training from slides and the annotations that QuPath exported as GeoJSON.",
        examples=[
            "histojax slide train-tiles SLIDES --output tiles --labels tumor,stroma --tile_mpp 0.5 "
            "--classes Tumour=tumor --patient_pattern '(?P<patient>P\\d+)'",
        ],
    )
    parser.add_argument(
        "slides",
        metavar="SLIDE",
        nargs="+",
        help="slides, folders of slides, lists (.csv: slide[,mpp][,name][,override_mpp][,patient_id])",
    )
    flags.add_output(parser, "folder to create; train on it as data.root")
    parser.add_argument(
        "--annotations",
        metavar="DIR",
        type=pathlib.Path,
        help="folder with one NAME.geojson per slide (default: beside the slides)",
    )
    parser.add_argument(
        "--labels", metavar="A,B,…", type=flags.comma_list, required=True, help="labels of the tiles, as tumor,stroma"
    )
    parser.add_argument("--size", metavar="PIXELS", type=int, default=224, help="side of a tile (default: 224)")
    parser.add_argument("--tile_mpp", metavar="UM", type=float, required=True, help="µm per pixel of the tiles")
    add_slide_mpp(parser)
    add_origin(parser)
    add_overlap(parser)
    parser.add_argument(
        "--min_share",
        metavar="FRACTION",
        type=float,
        default=0.05,
        help="least fraction of a tile that a label covers to be one of its labels (default: 0.05)",
    )
    add_min_tissue(parser)
    parser.add_argument(
        "--min_annotated",
        metavar="FRACTION",
        type=float,
        default=0.5,
        help="least fraction of a tile that annotations cover (default: 0.5)",
    )
    parser.add_argument(
        "--classes",
        action="append",
        default=[],
        metavar="CLASS=LABEL",
        help="label of an annotation class; CLASS= means tissue without a label",
    )
    parser.add_argument(
        "--ignore_unknown", action="store_true", help="ignore annotations of classes that are not labels"
    )
    parser.add_argument(
        "--patient_pattern",
        default="",
        help="regular expression on slide names with a group (?P<patient>…), for slides without a patient_id in a list",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Cut the tiles."""
    extras.require("slides", "histojax slide train-tiles")
    from histojax.slides import cohort_jobs
    from histojax.slides.annotations import training_tiles

    jobs = cohort_jobs.find(args.slides, args.mpp, override_mpp=args.override_mpp, output=args.output)
    if any(job.roi for job in jobs):
        raise RunError("the column roi of a list is for `histojax slide`: name the annotations with --annotations")
    slides = training_tiles.pair([job.slide for job in jobs], args.annotations)
    slides = [
        dataclasses.replace(
            slide,
            mpp=job.mpp,
            override_mpp=job.override_mpp,
            name=job.name,
            patient_id=job.patient_id,
            origin=args.origin,
        )
        for slide, job in zip(slides, jobs, strict=True)
    ]
    for text in args.classes:
        if "=" not in text:
            raise RunError(f"--classes={text} is not CLASS=LABEL")
    spec = training_tiles.CutSpec(
        labels=tuple(args.labels),
        size=args.size,
        mpp=args.tile_mpp,
        overlap=args.overlap,
        min_share=args.min_share,
        min_annotated=args.min_annotated,
        min_tissue=args.min_tissue,
        class_names=dict(text.rsplit("=", 1) for text in args.classes),
        ignore_unknown=args.ignore_unknown,
        patient_pattern=args.patient_pattern,
    )
    record = training_tiles.cut(slides, args.output, spec)
    _print(record, args.output, spec)


def _print(record: Mapping[str, Any], output: pathlib.Path, spec: Any) -> None:
    """Print the tiles of each slide, and how to train on them."""
    for name, facts in record["slides"].items():
        counts = ", ".join(f"{label} {n}" for label, n in facts["tiles_of_label"].items())
        print(f"{name}: {facts['tiles']} tiles ({counts})")
        for warning in facts["warnings"]:
            print(f"  warning: {warning}")
    labels = ",".join(f"'{label}'" for label in spec.labels)
    print(
        f"{record['tiles']} tiles in {output}; train on them with --config.data.root={output} "
        f'--config.data.mpp={spec.mpp:g} --config.data.tiles.labels="({labels},)"'
    )
