"""The flags that several commands share, each defined once."""

import argparse
import math
import pathlib
from collections.abc import Callable

from histojax.cli.parser import CommandParser
from histojax.core import interval


def add_config(parser: CommandParser, *, required: bool = True, help: str = "") -> None:
    """Add `--config NAME[:VARIANT]`, and allow `--config.FIELD=VALUE`."""
    parser.takes_overrides = True
    parser.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        required=required,
        help=help
        or "experiment: a name in configs/, or the path of a config file, FILE.py[:VARIANT]; "
        "--config.FIELD=VALUE overrides a field, such as --config.train.epochs=5",
    )


def add_workdir(
    parser: "argparse._ActionsContainer", help: str, *, required: bool = False, default: str | None = None
) -> None:
    """Add `--workdir DIR`."""
    parser.add_argument("--workdir", metavar="DIR", required=required, default=default, help=help)


def add_run(parser: CommandParser) -> None:
    """Add the positional argument RUN, a trained model, as `run_path`."""
    parser.add_argument("run_path", metavar="RUN", type=pathlib.Path, help="work directory or checkpoint of the model")
    advise_positional_run(parser)


def advise_positional_run(parser: CommandParser) -> None:
    """Say of the flags by which other commands take a run that this one takes it without a flag."""
    for flag in ("--workdir", "--checkpoint", "--run"):
        parser.advice[flag] = f"give the run without a flag, as the first argument of {parser.prog}"


def add_output(parser: argparse.ArgumentParser, help: str, *, default: str | None = None) -> None:
    """Add `--output PATH`, required unless there is a default."""
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=pathlib.Path,
        required=default is None,
        default=None if default is None else pathlib.Path(default),
        help=help if default is None else f"{help} (default: {default})",
    )


def add_seed(parser: "argparse._ActionsContainer", help: str, *, default: int | None = 0) -> None:
    """Add `--seed N`; without a default the help text says where it comes from."""
    suffix = "" if default is None else f" (default: {default})"
    parser.add_argument("--seed", metavar="N", type=not_negative, default=default, help=help + suffix)


def add_threads(parser: argparse.ArgumentParser, help: str, *, default: int = 4) -> None:
    """Add `--threads N`."""
    parser.add_argument("--threads", metavar="N", type=positive, default=default, help=f"{help} (default: {default})")


def add_layer(parser: argparse.ArgumentParser) -> None:
    """Add `--layer`, the features that are computed."""
    parser.add_argument(
        "--layer",
        metavar="NAME",
        default="pooled",
        help="pooled, what the classifier sees; or a feature map, such as layer3 or block12, whose mean over all "
        "positions is taken (default: pooled)",
    )


def add_batch_size(parser: argparse.ArgumentParser, *, default: int | None = None) -> None:
    """Add `--batch_size N`; without a default, the devices decide."""
    parser.add_argument(
        "--batch_size",
        metavar="N",
        type=positive,
        default=default,
        help=f"images per batch, split across devices (default: {default or '8 on CPUs, 32 on others'})",
    )


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--shard I/N`."""
    parser.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help=f"process only every N-th {what}, starting with number I (from 0); one --output per shard",
    )


def add_redo(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--redo`."""
    parser.add_argument("--redo", action="store_true", help=help)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add `--verbose`."""
    parser.add_argument("--verbose", action="store_true", help="print every metric, not only the most important ones")


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--json [FILE]`: a path, or "-" without a value."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help=f"write {what} as JSON to FILE; without FILE, print it instead of the text",
    )


def positive(text: str) -> int:
    """Parse a whole number that is at least 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Parse a whole number that is at least 0."""
    return _at_least(0, text)


def number_in(legal: str) -> Callable[[str], float]:
    """Return a parser of numbers in an interval such as "(0, inf)"."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not (math.isfinite(number) and interval.contains(legal, number)):
            raise argparse.ArgumentTypeError(f"{text} is not {interval.describe(legal)}")
        return number

    return parse


def comma_list(text: str) -> list[str]:
    """Parse A,B,C."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is not at least {least}")
    return number
