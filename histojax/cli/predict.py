"""`histojax predict`: images in, a table of probabilities and labels out."""

import argparse
import logging
import pathlib
import sys
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers

_log = logging.getLogger(__name__)


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax predict`."""
    parser = add_verb(
        subparsers,
        "predict",
        run,
        summary="probabilities and labels of images, folders, lists, zip archives",
        description="Writes a table with the probabilities and labels of images, resized as in training, and after "
        "`histojax novelty RUN` with their distance from its training images. Rerun the same command to resume after "
        "an interruption. Images that cannot be read are listed in <stem of --output>.failed.csv; exit code 1 if none "
        "can be read. Research use only.",
        examples=[
            "histojax predict runs/dala_100x IMAGES --output predictions.csv",
            "histojax predict runs/fold_0,runs/fold_1 IMAGES --output predictions.parquet --tta dihedral",
            "histojax predict runs/dala_100x IMAGES --sets 0.9 --abstain",
        ],
    )
    parser.add_argument(
        "run_names",
        metavar="RUN",
        help="work directory or checkpoint of the model; several, as A,B,C: the mean of their probabilities",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders, globs, lists (.csv: path[,patient_id][,label][,…]), zip archives",
    )
    flags.advise_positional_run(parser)
    flags.add_output(parser, "table to write, .csv or .parquet", default="predictions.csv")
    parser.add_argument(
        "--tta",
        choices=["none", "dihedral"],
        default="none",
        help="dihedral: average over the 8 flips and quarter turns of each image (default: none)",
    )
    parser.add_argument(
        "--calibrated", action="store_true", help="scale probabilities by the temperature fitted on validation images"
    )
    parser.add_argument(
        "--threshold",
        default="",
        help="0.5, or LABEL=0.4,…; with two classes CLASS=0.4; default: the thresholds chosen on validation images",
    )
    _add_sets(parser)
    flags.add_batch_size(parser)
    flags.add_threads(parser, "threads that read images")
    flags.add_shard(parser, "image")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 if an image cannot be read")
    flags.add_redo(parser, "overwrite an existing or partial table")
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def _add_sets(parser: CommandParser) -> None:
    """Add the flags of prediction sets."""
    parser.add_argument(
        "--sets",
        metavar="LEVEL",
        type=flags.number_in("(0, 1)"),
        help="add the set of classes that holds the true one with this probability, such as 0.9, for images of new "
        "patients; it rests on the run's validation patients",
    )
    parser.add_argument(
        "--sets_by",
        choices=["all", "class"],
        help="class: the probability of --sets holds in each class, not only over all images (default: all)",
    )
    parser.add_argument(
        "--abstain",
        action="store_true",
        help="with --sets: add the class where the set has exactly one, else `abstained`",
    )


def _check_sets(args: argparse.Namespace) -> None:
    """Check that the flags of prediction sets fit together.

    Raises:
      RunError: they do not.
    """
    if args.sets is None and (args.abstain or args.sets_by):
        raise RunError(f"--{'abstain' if args.abstain else 'sets_by'} needs --sets, such as --sets 0.9")
    if args.sets is not None and args.tta != "none":
        raise RunError(
            f"--sets with --tta={args.tta}: sets rest on the run's validation predictions, which are without --tta; "
            "drop one of the two"
        )


def run(args: argparse.Namespace) -> None:
    """Predict."""
    from histojax.core import shards
    from histojax.inference.predict import images, prediction_table

    _check_sets(args)
    prediction_table.check_output(args.output)
    refs = shards.share(images.find(args.paths), args.shard)
    if not refs:
        raise RunError(f"--shard={args.shard}: there are fewer images than shards, and none for this one")

    # Only now, so that a wrong flag or path is reported without waiting for jax.
    from histojax.distributed import runtime
    from histojax.inference.novelty.scorer import NoveltyScorer
    from histojax.inference.predict import prediction_run, sets
    from histojax.inference.predict.summary import magnification_warnings, summary_lines
    from histojax.inference.predict.thresholds import combine_thresholds
    from histojax.inference.predictor import Predictor

    runtime.prepare()
    runs = [args.run_names] if pathlib.Path(args.run_names).exists() else flags.comma_list(args.run_names)
    if not runs:
        raise RunError("no run is named")
    models = [Predictor.load(path, batch_size=args.batch_size) for path in runs]
    thresholds = combine_thresholds(models, args.threshold, calibrated=args.calibrated)
    if thresholds is not None:
        listed = ", ".join(f"{name} {threshold:.3g}" for name, threshold in thresholds.items())
        _log.info("a label is assigned from this probability on: %s", listed)
    rule = None
    if args.sets is not None:
        rule = sets.fit(models, args.sets, args.sets_by or "all", calibrated=args.calibrated)
    if "--output" not in args.given:
        _log.info("no --output is given: writing %s", args.output.absolute())
    for warning in magnification_warnings(refs, [model.magnification for model in models]):
        _log.warning("warning: %s", warning)
    novelty = NoveltyScorer.of_predictor(models[0]) if len(models) == 1 else None
    if len(models) > 1 and any(map(NoveltyScorer.file_of, models)):
        _log.info("no columns of novelty: several runs are averaged")
    summary = prediction_run.run(
        refs,
        models,
        args.output,
        thresholds=thresholds,
        dihedral=args.tta == "dihedral",
        calibrated=args.calibrated,
        sets=rule,
        abstain=args.abstain,
        threads=args.threads,
        redo=args.redo,
        novelty=novelty,
    )
    print("\n".join(summary_lines(summary, args.output, rule, abstain=args.abstain)))
    if not summary.images:
        sys.exit("error: no image could be read. Fix the images, and rerun with --redo")
    if summary.failed and args.strict:
        sys.exit(f"error: {summary.failed} of {len(refs)} images could not be read, which --strict does not allow")
