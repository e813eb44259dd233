"""`histojax runs`: what is in a folder of runs."""

import argparse
import pathlib
from typing import TYPE_CHECKING

from histojax.cli.parser import CommandParser, add_verb

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax runs`."""
    parser = add_verb(
        subparsers,
        "runs",
        run,
        summary="list the runs below a folder: state, model, protocol, headline figure",
        description="Lists the work directories below a folder. A run is finished, interrupted (the same command "
        "resumes it), failed, running, or killed. Its figure is that of the test side, with the 95 % interval.",
        examples=["histojax runs runs", "histojax runs runs --output runs.csv"],
    )
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="folder of runs")
    parser.add_argument("--output", metavar="PATH", type=pathlib.Path, help="also write the list as CSV")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the list."""
    from histojax.studies import run_list

    rows = run_list.find_runs(args.folder)
    print(run_list.table(rows), end="")
    if args.output is not None:
        run_list.write_csv(rows, args.output)
