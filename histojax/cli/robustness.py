"""`histojax robustness`: how a model's figures change when its test images shift."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.core.files import write_json

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers

_OF_RUNS = ("--shifts", "--data_root", "--mpp", "--batch_size", "--threads", "--redo")
_OF_FEATURES = ("--label", "--confounder", "--table", "--k")
_FOLDER = "robustness"


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax robustness`."""
    parser = add_verb(
        subparsers,
        "robustness",
        run,
        summary="how a model's figures change when stain, light, focus or scale of its test images shift",
        description="Predicts the test images of finished runs again, shifted in graded steps: stains of other "
        "sources, brightness, white point, defocus, JPEG, scale, noise, position, rotation. Writes curves of accuracy, "
        "ranking and calibration with intervals over patients, their area and worst case; of several runs also paired "
        "differences. Rerun the same command to resume.\n\n"
        "With --features: the robustness index of features, which says whether an image's neighbours share its class "
        "or what should not matter. Research use only.",
        examples=[
            "histojax robustness runs/dala_200x",
            "histojax robustness runs/dala_200x runs/resnet50_200x --shifts stain,jpeg --output robustness_out",
            "histojax robustness --features features.parquet --label label --confounder magnification",
        ],
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", type=pathlib.Path, help="work directories of finished runs")
    flags.advise_positional_run(parser)
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=pathlib.Path,
        help="folder of the results; required with several runs, whose own results stay with them (default: "
        "RUN/robustness, with --features robustness)",
    )
    parser.add_argument(
        "--shifts",
        metavar="A,B,…",
        type=flags.comma_list,
        default=[],
        help="some of stain (or stain_SOURCE), brightness, white_point, defocus, jpeg, scale, noise, shift, rotation "
        "(default: all)",
    )
    parser.add_argument("--data_root", metavar="PATH", default="", help="dataset root, if the run's has moved")
    parser.add_argument(
        "--mpp",
        metavar="UM",
        type=flags.number_in("(0, inf)"),
        help="µm per pixel of the images (default: their table's or the run's data.mpp; without any, defocus is in "
        "pixels of the model's input)",
    )
    parser.add_argument(
        "--resamples", metavar="N", type=flags.not_negative, default=2000, help="bootstrap resamples (default: 2000)"
    )
    flags.add_seed(parser, "random seed of the bootstrap")
    flags.add_batch_size(parser)
    flags.add_threads(parser, "threads that decode and shift images")
    flags.add_redo(parser, "predict again what has been predicted")
    group = parser.add_argument_group("robustness index of features")
    group.add_argument(
        "--features", metavar="FILE", nargs="+", type=pathlib.Path, help="files that `histojax embed` wrote"
    )
    group.add_argument("--label", metavar="COLUMN", default="label", help="column of the classes (default: label)")
    group.add_argument(
        "--confounder", metavar="COLUMN", default="", help="column of what should not matter, such as magnification"
    )
    group.add_argument("--table", metavar="FILE", type=pathlib.Path, help="table with image_id and further columns")
    group.add_argument(
        "--k",
        metavar="A,B,…",
        type=_numbers,
        default=(),
        help="numbers of neighbours to try (default: 1,3,5,10,20,30,40,50)",
    )
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(flags.positive(part) for part in flags.comma_list(text))


def run(args: argparse.Namespace) -> None:
    """Measure, print the most important figures and write all of them."""
    if bool(args.runs) == bool(args.features):
        raise RunError("give either RUN …, or --features FILE … with --confounder COLUMN")
    refuse_unused(args, bool(args.runs), _OF_RUNS, "with RUN")
    refuse_unused(args, bool(args.features), _OF_FEATURES, "with --features")
    if args.features:
        _measure_features(args)
        return
    if len(args.runs) > 1 and args.output is None:
        raise RunError("several runs: name the folder of the comparison with --output=PATH")
    _measure_runs(args)


def _measure_features(args: argparse.Namespace) -> None:
    if not args.confounder:
        raise RunError("--features needs --confounder=COLUMN, such as site or magnification")
    from histojax.studies.robustness import features, index

    results = features.indices(
        args.features,
        label=args.label,
        confounder=args.confounder,
        table=args.table,
        k_values=args.k or index.K,
        resamples=args.resamples,
        seed=args.seed,
    )
    folder = expand_user(args.output or _FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "robustness_index.json", results)
    print(features.text(results), end="")
    print(f"\nSee {folder}/robustness_index.json")


def _measure_runs(args: argparse.Namespace) -> None:
    from histojax.distributed import runtime
    from histojax.evaluation.report import sources
    from histojax.studies.robustness import study, table

    options = study.Options(
        shifts=args.shifts,
        data_root=args.data_root,
        mpp=args.mpp,
        resamples=args.resamples,
        seed=args.seed,
        batch_size=args.batch_size,
        threads=args.threads,
        redo=args.redo,
    )
    runtime.prepare()
    study.check(args.runs)
    several = len(args.runs) > 1
    measured = []
    for path, name in zip(args.runs, sources.names(args.runs), strict=True):
        folder = path / _FOLDER if several or args.output is None else expand_user(args.output)
        measured.append(study.measure(path, name, folder, options))
        _write(study.results_of(measured[-1:], options), folder)
    folder = expand_user(args.output) if args.output else args.runs[0] / _FOLDER
    results = study.results_of(measured, options)
    if several:
        _write(results, folder)
    print(table.text(results), end="")
    print(f"\nSee {folder}/{study.RESULTS}, robustness.csv and the curves beside them")


def _write(results: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Write robustness.json, the same as CSV, and the curves."""
    from histojax.evaluation.report import robustness_plots
    from histojax.studies.robustness import study, table

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / study.RESULTS, results)
    table.write_csv(results, folder / "robustness.csv")
    robustness_plots.write(results, folder)
