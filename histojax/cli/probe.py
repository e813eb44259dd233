"""`histojax probe`: what frozen features predict, beside what colour and texture predict."""

import argparse
import pathlib
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core import extras
from histojax.core.errors import RunError
from histojax.core.files import write_json

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers

# Of histojax.studies.probe.rows, which is not imported for a help text; a test holds that they are the same.
HEADS = ("linear", "knn", "simpleshot")
_DRAWS = 3


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax probe`."""
    parser = add_verb(
        subparsers,
        "probe",
        run,
        summary="measure what frozen features predict, beside colour and texture",
        description="Fits a logistic regression, nearest neighbours and SimpleShot on files of features, under any "
        "split protocol. One table also has a constant answer, colours, and colour and texture alone. Every row has "
        "intervals over patients and its paired difference from a reference row. Writes probe.json and "
        "probe.csv. Needs the extra 'probe'. Research use only.",
        examples=[
            "histojax probe features.parquet --images BreaKHis_v1 --protocols folds --folds_dir FOLDS --output probe",
            "histojax probe features.parquet --split runs/dala_100x/split.csv --images BreaKHis_v1 --output probe",
        ],
    )
    parser.add_argument(
        "features",
        metavar="FEATURES",
        type=pathlib.Path,
        nargs="+",
        help="file of features that `histojax embed` wrote (.parquet, .npz), or a run, whose model embeds the images; "
        "several of them hold the same images; and work directories of `histojax protocols`, whose predictions become "
        "rows",
    )
    parser.add_argument(
        "--images",
        metavar="ROOT",
        type=pathlib.Path,
        help="root of the images, below which the names in FEATURES lie; gives the rows of colour and texture",
    )
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument(
        "--protocols",
        metavar="A,B,…",
        type=flags.comma_list,
        default=["auto"],
        help="split protocols; docs/concepts/protocols.md lists them; also nanopath, which tests thunder's validation "
        "side (default: auto, the strictest that the data allow)",
    )
    sides.add_argument(
        "--split", metavar="FILE", type=pathlib.Path, help="split.csv of a run, or any split that the audit reads"
    )
    parser.add_argument(
        "--folds",
        metavar="K",
        type=flags.not_negative,
        default=5,
        help="folds of protocols that draw them; 0: one hold-out (default: 5)",
    )
    parser.add_argument(
        "--folds_dir", metavar="DIR", type=pathlib.Path, help="folder with dsfold1.txt …, for the protocol 'folds'"
    )
    parser.add_argument("--task", choices=("binary", "subtype"), default="", help="for BreakHis (default: binary)")
    parser.add_argument("--magnification", metavar="M", default="", help="only images of this one, such as 200X")
    parser.add_argument(
        "--heads",
        metavar="A,B,…",
        type=flags.comma_list,
        default=list(HEADS),
        help=f"some of {', '.join(HEADS)} (default: all)",
    )
    parser.add_argument(
        "--C",
        metavar="C",
        type=flags.number_in("(0, inf)"),
        help="inverse strength of the logistic regression's penalty (default: chosen within the training images)",
    )
    parser.add_argument(
        "--fractions",
        metavar="A,B,…",
        type=flags.comma_list,
        default=[],
        help="also fit the logistic regression on these percentages of the training images, such as 1,10,50",
    )
    parser.add_argument(
        "--random_weights",
        metavar="N",
        type=flags.not_negative,
        default=_DRAWS,
        help="with --images: networks like the first one of FEATURES, but with random weights, as one row; embedded "
        f"once, then cached; 0: none (default: {_DRAWS})",
    )
    parser.add_argument(
        "--reference",
        metavar="ROW",
        default="",
        help="name of the row that others are compared with (default: 'colour and texture, linear')",
    )
    flags.add_seed(parser, "random seed of folds, label fractions, support sets and intervals")
    flags.add_output(parser, "folder for probe.json and probe.csv", default="probe")
    parser.set_defaults(interrupted="interrupted: nothing was written")
    return parser


def run(args: argparse.Namespace) -> None:
    """Probe features; print and write the table."""
    extras.require("probe", "histojax probe")
    if unknown := [head for head in args.heads if head not in HEADS]:
        raise RunError(f"--heads: {', '.join(unknown)} is not one of {', '.join(HEADS)}")
    refuse_unused(args, args.split is None, ["--folds", "--folds_dir"], "without --split")
    refuse_unused(args, "linear" in args.heads, ["--C", "--fractions"], "with 'linear' in --heads")
    refuse_unused(args, args.images is not None, ["--random_weights"], "with --images")
    fractions = _fractions(args.fractions)
    from histojax.distributed import runtime
    from histojax.studies.probe import probe, table
    from histojax.studies.probe.rows import Settings

    options = probe.Options(
        protocols=args.protocols,
        split=args.split,
        kfolds=args.folds,
        folds_dir=args.folds_dir,
        images=args.images,
        task=args.task,
        magnification=args.magnification,
        settings=Settings(args.heads, fractions, args.C, args.seed),
        reference=args.reference,
        draws=args.random_weights if args.images else 0,
    )
    runtime.prepare()
    results = probe.probe(args.features, options)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "probe.json", results)
    table.write_csv(results, args.output / "probe.csv")
    print(table.text(results), end="")
    print(f"\nSee {args.output}/probe.json and probe.csv")


def _fractions(percentages: list[str]) -> list[float]:
    """Parse percentages to fractions.

    Raises:
      RunError: one is not a number above 0 and below 100.
    """
    fractions = []
    for text in percentages:
        try:
            value = float(text) / 100
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise RunError(f"--fractions: '{text}' is not a percentage above 0 and up to 100")
        fractions.append(value)
    return fractions
