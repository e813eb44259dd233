"""`histojax slide agreement`: predicted stroma percentages against those of masks."""

import argparse
import pathlib
from typing import TYPE_CHECKING

from histojax.cli import flags, slide_ratio
from histojax.cli.parser import CommandParser, add_verb
from histojax.core import extras
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.storage import places

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers
    from histojax.slides.tsr import held_out


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax slide agreement`."""
    parser = add_verb(
        subparsers,
        "slide agreement",
        run,
        summary="agreement of predicted stroma percentages with those of masks",
        description="Compares the stroma percentage that runs predict for their test images with that of the images' "
        "masks.",
        examples=["histojax slide agreement runs/fold_0 runs/fold_1 runs/fold_2 --output agreement"],
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=pathlib.Path, help="one work directory, or the folds of one split"
    )
    flags.advise_positional_run(parser)
    parser.add_argument("--data_root", metavar="PATH", default="", help="images and masks, if the runs' have moved")
    flags.add_output(parser, "folder for agreement.json and agreement.csv")
    slide_ratio.add_flags(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure the agreement."""
    extras.require("slides", "histojax slide agreement")
    from histojax.slides.tsr import agreement, held_out

    runs = [_read_run(path, args.data_root) for path in args.runs]
    spec = slide_ratio.ratio_spec(args, runs[0].labels, runs[0].thresholds)
    if spec is None:
        raise RunError("the runs' labels include no tumor and stroma, so there is no ratio to compare")
    table = held_out.percentages(runs, spec)
    estimates = agreement.agreement(
        table["predicted"].to_numpy(), table["reference"].to_numpy(), resamples=spec.resamples, seed=spec.seed
    )
    args.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.output / "agreement.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(args.output / "agreement.json", {"rules": spec.sentences(), "figures": estimates})
    print(f"stroma percentage of {len(table)} held-out images: {'; '.join(spec.sentences())}")
    print(agreement.lines(estimates))


def _read_run(path: pathlib.Path, data_root: str) -> "held_out.Run":
    """Read a run's test predictions, labels and thresholds.

    Args:
      path: work directory.
      data_root: folder of images and masks; empty: the run's.

    Raises:
      RunError: the model has one class per image, or the images are not there.
    """
    from histojax.data.sources import tiles_spec
    from histojax.evaluation import predictions
    from histojax.slides.tsr import held_out
    from histojax.training import checkpoint

    meta = checkpoint.read_meta(checkpoint.find(path))
    data, labels = meta["config"]["data"], tuple(meta["classes"])
    if meta["thresholds"] is None:
        raise RunError(f"{path}: the model has one class per image; agreement needs tiles with several labels")
    place = data_root or data["root"]
    root = places.local(place)
    if not (place and root.exists()):
        missing = f"{root}: no such folder of images" if place else f"{path}: the run had synthetic images"
        raise RunError(f"{missing}; name the folder of images and masks with --data_root=PATH")
    return held_out.Run(
        name=path.name,
        predictions=predictions.read(path / "predictions.parquet"),
        root=root,
        tiles=tiles_spec(data["tiles"]),
        labels=labels,
        thresholds=dict(zip(labels, meta["thresholds"], strict=True)),
    )
