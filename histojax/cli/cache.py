"""`histojax cache`: prepared copies of datasets on this machine, and their deletion."""

import argparse
import pathlib
import time
from typing import TYPE_CHECKING

from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean
from histojax.core.text_table import byte_size, text_table

if TYPE_CHECKING:
    from data_pipelines.prepared_copies import PreparedCopy
    from histojax.cli.parser import Subparsers

_ALL, _ORPHANS = "all", "orphans"


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax cache`."""
    parser = add_verb(
        subparsers,
        "cache",
        run,
        summary="list and delete the prepared copies of datasets",
        description="Lists what earlier commands prepared: datasets with their source, extracted archives, synthetic "
        "images. A run makes again what it needs. Delete nothing that a running command uses.",
        examples=["histojax cache", f"histojax cache --clear {_ORPHANS}"],
    )
    parser.add_argument(
        "--clear",
        nargs="+",
        metavar="NAME",
        default=[],
        help=f"delete these copies; {_ALL}: every copy; {_ORPHANS}: datasets whose source is gone",
    )
    parser.add_argument(
        "--prepared_dir",
        metavar="DIR",
        default="",
        help="folder of prepared data, as config.data.prepared_dir (default: $HISTOJAX_DATA or ~/.cache/histojax)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """List the copies, or delete some of them."""
    from data_pipelines.prepared_copies import delete, list_copies
    from histojax.core.directories import default_directory, expand_user

    base = expand_user(args.prepared_dir).absolute() if args.prepared_dir else default_directory()
    copies = list_copies(base)
    if not args.clear:
        print("\n".join(_table(base, copies)))
        return
    chosen = _choose(args.clear, copies)
    for copy in chosen:
        delete(base, copy)
        print(f"deleted {copy.path}")
    print(f"deleted and freed: {_total(chosen)}")


def _choose(names: list[str], copies: "list[PreparedCopy]") -> "list[PreparedCopy]":
    """Return the copies that `--clear` names.

    Raises:
      RunError: a name is unknown.
    """
    known = [copy.name for copy in copies]
    for name in names:
        if name not in (_ALL, _ORPHANS, *known):
            raise RunError(
                f"--clear {name}: no copy has this name{did_you_mean(name, known)}; histojax cache lists them"
            )
    return [copy for copy in copies if _ALL in names or copy.name in names or (_ORPHANS in names and copy.orphan)]


def _table(base: pathlib.Path, copies: "list[PreparedCopy]") -> list[str]:
    if not copies:
        return [f"{base}: no prepared copies"]
    rows = [["size", "images", "last written", "kind", "source", "name"]]
    for copy in copies:
        source = f"{copy.source} (gone)" if copy.orphan else copy.source or "-"
        images = "-" if copy.num_images is None else str(copy.num_images)
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(copy.modified))
        rows.append([byte_size(copy.num_bytes), images, written, copy.kind, source, copy.name])
    return [*text_table(rows, right=(0, 1)), "", f"{base}: {_total(copies)}"]


def _total(copies: "list[PreparedCopy]") -> str:
    """Format the number and the size of copies."""
    noun = "copy" if len(copies) == 1 else "copies"
    return f"{len(copies)} {noun}, {byte_size(sum(copy.num_bytes for copy in copies))}"
