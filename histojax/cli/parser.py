"""The parser of every command: argparse with suggestions for misspelt flags, and with overrides of config fields."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from histojax.core.errors import RunError
from histojax.core.suggestions import closest, did_you_mean

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["CommandParser"]

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_WIDTH = 100


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line with a suggestion, and which may take `--config.FIELD=VALUE`.

    Attributes:
      summary: one line for the list of commands.
      takes_overrides: whether `--config.FIELD=VALUE` is allowed; such flags become `overrides` of the result, a list
        of pairs (field, text), where a switch without a value has None for its text.
      advice: what to use instead of flags that other commands have, by flag.

    The result also has `given`, the flags that the command line names, for `refuse_unused`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, allow_abbrev=False)
        self.summary = ""
        self.takes_overrides = False
        self.advice: dict[str, str] = {}

    # argparse parses the words of a command with this method of the command's own parser.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments, and refuse those that the command does not know."""
        argv = list(sys.argv[1:] if args is None else args)
        overrides: list[tuple[str, str | None]] = []
        if self.takes_overrides:
            argv, overrides = split_overrides(argv)
        self._refuse_unknown_flags(argv)
        found, extra = super().parse_known_args(argv, namespace)
        if extra:
            flags_only = "" if self._get_positional_actions() else f"; {self.prog} takes only flags"
            self.error(f"unexpected arguments: {' '.join(extra)}{flags_only}")
        if self.takes_overrides:
            found.overrides = overrides
        if self._subparsers is None:
            found.given = [word.partition("=")[0] for word in argv if word.startswith("--")]
        return found, []

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2 and one line."""
        self.exit(2, f"error: {message}\nSee {self.prog} --help\n")

    # argparse calls this for flags with choices and for the names of commands.
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known)
            raise argparse.ArgumentError(action, f"'{value}' is not one of {', '.join(known)}{hint}")

    def _refuse_unknown_flags(self, argv: Sequence[str]) -> None:
        """Report a misspelt flag before argparse reports the one that is missing because of it."""
        flags = list(self._option_string_actions)
        for word in argv:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return  # what follows a command is its own parser's
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in flags:
                if flag.startswith("--config."):
                    self.error(f"{self.prog} reads no config, so {flag} has no meaning here")
                self.error(f"unknown flag {flag}{self._instead_of(flag, flags)}")

    def _instead_of(self, flag: str, flags: Sequence[str]) -> str:
        """Return what to write instead of an unknown flag, as the end of a message."""
        if flag in self.advice:
            return f": {self.advice[flag]}"
        name, fields, hint = flag.removeprefix("--"), [], closest(flag[2:], [known[2:] for known in flags])
        if self.takes_overrides:
            from histojax.training import experiments

            fields = experiments.fields_named(name) or ([] if hint else experiments.fields_named(name, nearly=True))
        if fields:
            return f": use {' or '.join(f'--config.{field}' for field in fields)}"
        return f" (did you mean '--{hint}'?)" if hint else ""


def refuse_unused(args: argparse.Namespace, used: bool, flags: Sequence[str], where: str) -> None:
    """Refuse flags that would have no effect.

    Args:
      args: a parsed command line.
      used: whether the flags have an effect.
      flags: the flags, such as `--seed`.
      where: what they have an effect with, such as "with --check".

    Raises:
      RunError: flags are given that are not used.
    """
    if not used and (unused := [flag for flag in flags if flag in args.given]):
        raise RunError(f"{', '.join(unused)}: has an effect only {where}; drop it")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Take `--config.FIELD=VALUE`, `--config.FIELD VALUE`, `--config.SWITCH` and `--noconfig.SWITCH` out of arguments.

    Returns:
      The other arguments, and pairs of field and text.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str | None]] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        negated, field, text = match.groups()
        if text is None and not negated and words and not words[0].startswith("--"):
            text = words.pop(0)
        overrides.append((field, "false" if negated else text))
    return rest, overrides


def add_verb(
    subparsers: "Subparsers",
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    summary: str,
    description: str,
    examples: Sequence[str],
) -> CommandParser:
    """Add the parser of one command.

    Args:
      subparsers: the parsers to add it to.
      name: name of the command, as typed after `histojax`.
      run: runs the command with the parsed arguments.
      summary: one line for `histojax --help`.
      description: paragraphs for the command's own help; lines that begin with a blank stay as they are.
      examples: complete command lines.
    """
    paragraphs = [
        text if "\n " in text or text.startswith(" ") else textwrap.fill(text, _WIDTH)
        for text in textwrap.dedent(description).strip().split("\n\n")
    ]
    title = "example:" if len(examples) == 1 else "examples:"
    parser = subparsers.add_parser(
        name,
        help=summary.replace("%", "%%"),
        description="\n\n".join(paragraphs),
        epilog="\n".join([title, *(f"  {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.summary = summary
    parser.set_defaults(run=run)
    return parser
