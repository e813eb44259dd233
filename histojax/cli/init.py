"""`histojax init`: look at images of one's own, and write a first config for them."""

import argparse
import pathlib
import re
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax init`."""
    parser = add_verb(
        subparsers,
        "init",
        run,
        summary="look at images of your own, and write a first config for them",
        description="Reads images in class folders, or those that a table lists, checks each of them, prints what they "
        "are, and writes a small config for `histojax train`. Trains nothing.",
        examples=[
            "histojax init MY_IMAGES --output mine.py",
            "histojax init cases.csv --label_column diagnosis --patient_pattern '(P[0-9]+)_' --output mine.py",
        ],
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        type=pathlib.Path,
        help="folder of class folders, table of paths and labels, or archive",
    )
    parser.add_argument(
        "--patient_pattern",
        metavar="REGEX",
        default="",
        help="regular expression on the paths of the images; its group is the patient; or with groups named patient, "
        "case, slide, site, magnification, label, train, val, test",
    )
    parser.add_argument(
        "--path_template",
        metavar="TEMPLATE",
        default="",
        help="path of each image below the table's folder, with columns in braces, such as 'images/{Image Name}'",
    )
    for name, what in (("path", "the files"), ("label", "the classes"), ("patient", "the patients")):
        parser.add_argument(f"--{name}_column", metavar="NAME", default="", help=f"column of the table with {what}")
    parser.add_argument("--model", metavar="NAME", default="resnet50", help="model of the config (default: resnet50)")
    flags.add_output(parser, "the config to write", default="mine.py")
    return parser


def run(args: argparse.Namespace) -> None:
    """Scan the images, print what they are and write the config."""
    from data_pipelines.image_folder import starter
    from data_pipelines.image_folder.spec import FolderSpec
    from data_pipelines.prepare import scan_image_folder
    from histojax import models

    output: pathlib.Path = args.output
    if output.suffix != ".py":
        raise RunError(f"--output={output}: a config is a Python file; name it such as {output.with_suffix('.py')}")
    if output.exists():
        raise RunError(f"{output} exists already: remove it, or choose another --output")
    try:
        models.spec(args.model)
    except ValueError as error:
        raise RunError(f"--model: {error}") from error
    named = {"path": args.path_column, "label": args.label_column, "patient_id": args.patient_column}
    spec = FolderSpec(
        path_template=args.path_template,
        group_pattern=_with_name(args.patient_pattern),
        columns=tuple((name, column) for name, column in named.items() if column),
    )
    root = args.images.expanduser().resolve()
    seen = starter.overview(scan_image_folder(root, spec))
    print("\n".join(seen.lines()))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        temporary.write_text(starter.config_text(root, spec, seen, output, args.model), encoding="utf-8")
    print(f"\nConfig   {output}\nNext     histojax train --config {output} --workdir runs/{output.stem}")


def _with_name(pattern: str) -> str:
    """Name the first group of a pattern that captures, or the whole pattern, after the patient."""
    if not pattern or "(?P<" in pattern:
        return pattern
    named, count = re.subn(r"(?<!\\)\((?!\?)", "(?P<patient>", pattern, count=1)
    return named if count else f"(?P<patient>{pattern})"
