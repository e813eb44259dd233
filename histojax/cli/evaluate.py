"""`histojax eval`: a checkpoint on the images of its run, or on others."""

import argparse
import contextlib
import gc
import pathlib
import shlex
from typing import TYPE_CHECKING

from histojax.cli import console, flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.cli.train import add_process_flags, print_results, start
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


# Fields of the config that describe images and evaluation; all others belong to the trained model.
_FIELDS = (
    *("data.root", "data.magnification", "data.prepared_dir", "data.on_bad_image", "data.on_bad_record"),
    *("data.threads", "data.workers", "plugins"),
)
_GROUPS = ("data.images.", "data.tiles.", "evaluation.")


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax eval`."""
    parser = add_verb(
        subparsers,
        "eval",
        run,
        summary="evaluate a checkpoint on the test images, or on other images",
        description="Evaluates a trained model. Without further flags, on the validation and test images of its run. "
        "On other images, patients of the training images are left out. --config.FIELD=VALUE changes how images are "
        "read, such as --config.data.on_bad_image=skip.",
        examples=[
            "histojax eval --workdir runs/dala_100x",
            "histojax eval --checkpoint runs/dala_100x --magnification 200X --workdir runs/at_200x",
        ],
    )
    flags.add_workdir(parser, "folder for the results; also the run, unless --checkpoint is given")
    parser.add_argument("--checkpoint", metavar="PATH", help="work directory or checkpoint of the model")
    parser.add_argument("--data_root", metavar="PATH", default="", help="dataset root, if different from the run's")
    parser.add_argument(
        "--image_size",
        metavar="PIXELS",
        type=flags.positive,
        default=0,
        help="height and width of the input, if different",
    )
    parser.add_argument("--magnification", metavar="M", default="", help="magnification, if different from the run's")
    flags.add_verbose(parser)
    add_process_flags(parser)
    parser.takes_overrides = True
    parser.advice["--config"] = (
        "evaluation takes the config of the checkpoint; --config.FIELD=VALUE changes fields of images and evaluation"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Evaluate."""
    for field, _ in args.overrides:
        if field not in _FIELDS and not field.startswith(_GROUPS):
            listed = ", ".join((*_FIELDS, *(f"{group}*" for group in _GROUPS)))
            raise RunError(f"--config.{field} belongs to the trained model; evaluation can change {listed}")
    if not (args.checkpoint or args.workdir):
        raise RunError("evaluation needs --workdir=DIR of a run, or --checkpoint=PATH")
    gc.disable()  # until `runtime.prepare`: the objects that imports create stay
    from histojax.distributed import processes

    with processes.ending_together(), console.exit_on_user_error():
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    from histojax.training import evaluate
    from histojax.training.run_folder import run_folder

    first = start(args, 2)
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(run_folder(args.workdir)).path if args.workdir else None
        folder = evaluate.evaluate_checkpoint(
            pathlib.Path(args.checkpoint or str(workdir)),
            workdir,
            data_root=args.data_root,
            magnification=args.magnification,
            image_size=args.image_size,
            overrides=args.overrides,
        )
    if first:
        place = str(folder)
        if workdir is not None:  # an address in a bucket has a local folder
            place = args.workdir.rstrip("/") + place.removeprefix(str(workdir))
        print_results(folder, verbose=args.verbose, place=place)
        print(f"Next     histojax report {shlex.quote(place)} --output report")
