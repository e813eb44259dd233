"""The `histojax` command: one parser for all verbs; each verb has its own file."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from histojax import __version__
from histojax.cli import (
    audit,
    cache,
    compare,
    console,
    convert,
    crossval,
    embed,
    evaluate,
    explain,
    export,
    init,
    models,
    novelty,
    predict,
    probe,
    protocols,
    report,
    robustness,
    runs,
    shardings,
    slide,
    slide_agreement,
    slide_outcome,
    slide_train_tiles,
    train,
    view,
)
from histojax.cli.bench import command as bench
from histojax.cli.doctor import command as doctor
from histojax.cli.parser import CommandParser
from histojax.core.suggestions import did_you_mean

GROUPS: dict[str, tuple[ModuleType, ...]] = {
    "Train": (train, crossval, compare, protocols, probe),
    "Use a model": (evaluate, robustness, predict, novelty, embed, explain, export, convert, report, runs, view),
    "Look at data": (init, audit, cache),
    "Slides": (slide, slide_train_tiles, slide_agreement, slide_outcome),
    "Machine": (doctor, bench, shardings, models),
}


class RootParser(CommandParser):
    """The parser above all verbs.

    Attributes:
      groups: title -> the parsers of its verbs, in the order of the help text.
    """

    def __init__(self) -> None:
        super().__init__(prog="histojax", description="Histopathology image classification in JAX. Research use only.")
        self.add_argument("--version", action="version", version=f"histojax {__version__}")
        subparsers = self.add_subparsers(metavar="COMMAND", parser_class=CommandParser)
        self.groups = {
            title: [module.add_parser(subparsers) for module in modules] for title, modules in GROUPS.items()
        }

    @property
    def verbs(self) -> dict[str, CommandParser]:
        """The parsers by command, such as "slide agreement"."""
        return {
            parser.prog.removeprefix(f"{self.prog} "): parser for parsers in self.groups.values() for parser in parsers
        }

    def format_help(self) -> str:
        """List the verbs by group, with the summary of each."""
        width = max(map(len, self.verbs))
        lines = ["usage: histojax COMMAND …", "", self.description or ""]
        names = {id(parser): name for name, parser in self.verbs.items()}
        for title, parsers in self.groups.items():
            lines += ["", title, *(f"  {names[id(parser)]:<{width}}  {parser.summary}" for parser in parsers)]
        lines += ["", "histojax COMMAND --help shows the flags of a command and an example.", ""]
        lines += ["  --version  print the version", "  --help     print this list"]
        return "\n".join(lines) + "\n"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `run` of the result does the command.

    Args:
      argv: words behind `histojax`.

    Raises:
      SystemExit: with code 0 after --help or --version, with code 2 and a message where the words cannot be parsed.
    """
    parser = RootParser()
    words = list(argv)
    if not words or words[0] == "help":
        words = ["--help"]
    if " ".join(words[:2]) in parser.verbs:  # `slide agreement`, beside `slide RUN SLIDE`
        words[:2] = [" ".join(words[:2])]
    if not words[0].startswith("-") and words[0] not in parser.verbs:
        known = list(parser.verbs)
        parser.error(f"unknown command '{words[0]}'{did_you_mean(words[0], known)}. Commands: {', '.join(known)}")
    return parser.parse_args(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; an error of the user ends the program with a message and exit code 1.

    Args:
      argv: words behind `histojax`; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(words)
    console.configure_logging()
    try:
        with console.exit_on_user_error(), _local_addresses(args, words) as args:
            args.run(args)
    except KeyboardInterrupt:
        console.exit_interrupted(getattr(args, "interrupted", "interrupted"))


@contextlib.contextmanager
def _local_addresses(args: argparse.Namespace, words: Sequence[str]) -> Iterator[argparse.Namespace]:
    """Provide the arguments with local paths in place of addresses in buckets."""
    if not any("s3://" in word or "gs://" in word for word in words):
        yield args  # without importing what reads buckets
        return
    from histojax.cli.bucket_words import with_local_paths

    with with_local_paths(words) as local:
        yield parse(local)


if __name__ == "__main__":
    main()
