"""`histojax train`: one training run, from its first step or from its last checkpoint."""

import argparse
import contextlib
import faulthandler
import gc
import io
import json
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING

from histojax.cli import console, flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import EXIT_RESUMABLE

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from histojax.cli.parser import Subparsers

_PROCESS_FLAGS = {
    "coordinator": "HOST:PORT of process 0",
    "num_processes": "number of processes",
    "process_id": "index of this process, from 0",
}


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax train`."""
    parser = add_verb(
        subparsers,
        "train",
        run,
        summary="train a model, or resume an interrupted run",
        description="Trains one model and evaluates its best checkpoint on the test images. Rerun the same command to "
        "resume after an interruption. Exit code 75: interrupted, and saved; 130: interrupted at once, by a second "
        "Ctrl-C.",
        examples=[
            "histojax train --config dala_resnet50_breakhis:smoke --workdir runs/smoke",
            "histojax train --config dala_resnet50_breakhis --workdir runs/dala_100x "
            "--config.data.root=BreaKHis_v1.tar.gz",
        ],
    )
    flags.add_config(parser)
    flags.add_workdir(parser, "folder of the run: checkpoints, curves, predictions, results", required=True)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="trace a few steps into WORKDIR/profile and list the costliest operations",
    )
    flags.add_verbose(parser)
    add_process_flags(parser)
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume from the last checkpoint")
    start_from = "start from the weights of a file or a run with --config.model.pretrained=PATH"
    parser.advice["--checkpoint"] = f"resume a run by its --workdir; {start_from}"
    parser.advice["--init_from"] = start_from
    return parser


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of one run in several processes, which `histojax eval` shares."""
    group = parser.add_argument_group(
        "several processes as one run", "The scripts in launch/, SLURM and Cloud TPU set these without flags."
    )
    for name, text in _PROCESS_FLAGS.items():
        group.add_argument(f"--{name}", metavar=name.upper(), default="", help=text)


def run(args: argparse.Namespace) -> None:
    """Train."""
    with console.resumable_at_sigterm():
        from histojax.training import default_config, experiments

        config = experiments.read(args.config, args.overrides)
        default_config.check_data_root(config)  # without waiting for jax
        gc.disable()  # until `runtime.prepare`: the objects that imports create stay
        from histojax.distributed import processes

        with processes.ending_together(), console.exit_on_user_error():
            _train(args, config)


def start(args: argparse.Namespace, cpu_devices: int) -> bool:
    """Set the process up, and join the run's other processes.

    Args:
      args: with the flags of `add_process_flags`.
      cpu_devices: virtual devices that a CPU is divided into.

    Returns:
      Whether this is the first process, the only one that prints results.
    """
    from histojax.distributed import processes, runtime

    if not faulthandler.is_enabled():
        with contextlib.suppress(io.UnsupportedOperation, AttributeError, RuntimeError):  # no real standard error
            faulthandler.enable()
    runtime.prepare(cpu_devices)
    processes.initialise({name: getattr(args, name) for name in _PROCESS_FLAGS})
    console.quiet_unless_first()
    import jax

    return jax.process_index() == 0


def print_results(folder: pathlib.Path, *, verbose: bool, place: str = "") -> None:
    """Print the results of a run or an evaluation, and where they lie.

    Args:
      folder: with results.json and results.txt.
      verbose: print every metric, not only the most important ones.
      place: what the user calls the folder, if that is not its path: an address in a bucket.
    """
    from histojax.evaluation import terminal

    if verbose:
        text = (folder / "results.txt").read_text(encoding="utf-8")
    else:
        text = terminal.headline(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    print(f"\n{text}")
    print(f"Results  {place or folder}/results.json; every metric as text: results.txt; per image: predictions.csv")


def _train(args: argparse.Namespace, config: "ConfigDict") -> None:
    from histojax.training import loop, profiling, run_folder

    if args.profile:
        profiling.disable_command_buffers()
    first = start(args, config.sharding.cpu_devices)
    if not loop.train_and_evaluate(config, args.workdir, args.profile):
        sys.exit(EXIT_RESUMABLE)
    if first:
        print_results(run_folder.path_of(args.workdir), verbose=args.verbose, place=args.workdir.rstrip("/"))
        quoted = shlex.quote(args.workdir)
        print(f"Next     histojax report {quoted} --output report")
        print(f"         histojax predict {quoted} IMAGES --output predictions.csv")
