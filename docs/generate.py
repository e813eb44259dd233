"""Writes the pages of config fields, commands and public sets from the code, and all tables of results.

Run it as `python docs/generate.py`. `docs/results_tables.py` explains the tables of results. The pages are committed;
`tests/project/reference_test.py` fails where one differs from what this script writes.
"""

import argparse
import ast
import dataclasses
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from docs import public_sets, results_tables
from docs.results_tables import markdown_table
from histojax import models
from histojax.cli.main import RootParser
from histojax.cli.parser import CommandParser
from histojax.core import interval
from histojax.training import default_config

REFERENCE = pathlib.Path(__file__).parent / "reference"
_MADE = "<!-- Written by docs/generate.py. Change the code and run the script; do not edit this page. -->\n"


def pages() -> dict[pathlib.Path, str]:
    """Return the text of every generated page, and of every page with results, by path."""
    return {
        REFERENCE / "config.md": config_page(),
        REFERENCE / "verbs.md": verbs_page(),
        public_sets.PATH: _page([public_sets.page().rstrip()]),
        **results_tables.pages(),
    }


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


# Config


def config_page() -> str:
    """Return the page of all config fields: default, legal values and meaning."""
    lines = [
        "# Config fields",
        "",
        "Every experiment has these fields. Set one on the command line, such as `--config.train.epochs=5`, or in a "
        "config file of your own. A misspelt field, an illegal value and a field without effect are errors. The "
        "defaults below are those of `histojax/training/default_config.py`; the experiments in `configs/` change "
        "some of them.",
    ]
    meanings = config_meanings()
    for group, fields in _by_group(meanings).items():
        lines += [
            "",
            f"## {group}",
            "",
            *markdown_table(("Field", "Default", "Meaning and legal values"), map(_row, fields)),
        ]
    lines += ["", "## Options of the models", ""]
    lines += [
        "`--config.model.options.OPTION=VALUE` sets an option of the model that `model.name` names. A meaning that "
        'begins with "choice" is our decision where the paper leaves it open.',
    ]
    for name in models.names():
        lines += [
            "",
            f"### {name}",
            "",
            *markdown_table(("Option", "Default", "Meaning"), _options(models.spec(name).config)),
        ]
    return _page(lines)


def config_meanings() -> dict[str, str]:
    """Return what each config field means, by field: its comment in the source of `default_config.base`."""
    source = inspect.getsource(default_config.base)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    groups, meanings = {"config": ""}, {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)):
            continue
        path = f"{groups[target.value.id]}.{target.attr}".lstrip(".")
        if len(node.targets) == 2 and isinstance(node.targets[1], ast.Name):  # a group and its short name
            groups[node.targets[1].id] = path
            continue
        above, line = [], node.lineno - 1
        while comments.get(line, ("", False))[1]:
            above.insert(0, comments[line][0])
            line -= 1
        beside = comments.get(node.lineno, ("", False))[0]
        meanings[path] = " ".join([*above, beside]).strip()
    return meanings


def _by_group(meanings: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return pairs of field and meaning by the group that holds the fields, such as "data.split"."""
    found: dict[str, list[tuple[str, str]]] = {}
    for field, meaning in meanings.items():
        found.setdefault(field.rpartition(".")[0] or "Top level", []).append((field, meaning))
    return found


def _row(entry: tuple[str, str]) -> tuple[str, ...]:
    field, meaning = entry
    for prefix, (other, needed) in default_config.USED_ONLY_WITH.items():
        if field.startswith(prefix):
            meaning = f"{meaning.removesuffix('.')}; only with `{other}={needed}`"
    value: Any = default_config.base()
    for part in field.split("."):
        value = value[part]
    legal = _legal(field, value)
    return (
        f"`{field}`",
        _default(value),
        _escape(f"{meaning.removesuffix('.')}." + (f" Legal: {legal}." if legal else "")),
    )


def _default(value: Any) -> str:
    """Return a default as one types it on the command line."""
    if isinstance(value, ConfigDict) or value in ("", ()):
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{_escape_bars(text)}`"


def _legal(field: str, value: Any) -> str:
    """Return the legal values of a field; empty where its meaning or its default shows them."""
    legal = default_config.LEGAL_VALUES.get(field, ())
    if isinstance(legal, str):
        kind = {int: "whole number", float: "number", tuple: "numbers"}[type(value)]
        return f"{kind} {interval.describe(legal)}"
    several = default_config.MULTILABEL_VALUES.get(field, ())
    return _codes(legal) + (f"; with several labels: {_codes(several)}" if several else "")


def _options(config: Any) -> Iterator[tuple[str, ...]]:
    """Yield name, default and meaning of each option of a model."""
    meanings = {
        name: meaning for cls in reversed(type(config).__mro__) for name, meaning in _attributes(cls.__doc__ or "")
    }
    for field in dataclasses.fields(config):
        yield f"`{field.name}`", _default(getattr(config, field.name)), _escape(meanings[field.name])


def _attributes(docstring: str) -> list[tuple[str, str]]:
    """Return names and descriptions in the section "Attributes" of a docstring."""
    section = re.search(r"^Attributes:\n((?:[ ]+\S.*\n?|\n)*)", inspect.cleandoc(docstring), re.MULTILINE)
    entries = re.findall(r"^  (\w+): (.*(?:\n {3,}.*)*)", section[1] if section else "", re.MULTILINE)
    return [(name, " ".join(text.split()).removesuffix(".")) for name, text in entries]


# Commands


def verbs_page() -> str:
    """Return the page of all commands with their flags."""
    root = RootParser()
    lines = [
        "# Commands",
        "",
        "`histojax COMMAND --help` prints the same. A wrong command line ends with exit code 2, an error that you can "
        "fix with code 1 and a message. `python -m histojax.main --config … --workdir …` is `histojax train`, and "
        "with `--mode=eval` it is `histojax eval`.",
    ]
    for title, parsers in root.groups.items():
        lines += ["", f"## {title}"]
        for parser in parsers:
            lines += _command(parser, "###")
            for action in parser._actions:  # only `bench` has commands of its own
                if isinstance(action, argparse._SubParsersAction):
                    lines += [line for work in action.choices.values() for line in _command(work, "####")]
    return _page(lines)


def _command(parser: CommandParser, heading: str) -> list[str]:
    """Lay out one command: usage, description, arguments, flags, examples."""
    lines = ["", f"{heading} {parser.prog}", "", "```text", _usage(parser), "```", *_description(parser)]
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, hidden)]
        if not actions:
            continue
        title = {"positional arguments": "Argument", "options": "Flag"}.get(str(group.title))
        if title is None:
            lines += ["", f"{str(group.title).capitalize()}:"]
        if group.description:
            lines += ["", _escape(group.description)]
        lines += ["", *markdown_table((title or "Flag", "Meaning"), ((_name(a), _meaning(a)) for a in actions))]
    examples = [line.strip() for line in (parser.epilog or "").splitlines()[1:]]
    return [*lines, "", "```bash", *examples, "```"]


def _usage(parser: CommandParser) -> str:
    """Return one line with the arguments and required flags of a command."""
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    words = [_words(a) for a in actions if not a.option_strings] + [_words(a) for a in actions if _is_required(a)]
    if any(a.option_strings and not a.required for a in actions):
        words.append("[FLAG …]")
    if parser.takes_overrides:
        words.append("[--config.FIELD=VALUE …]")
    return " ".join([parser.prog, *words])


def _is_required(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.required


def _words(action: argparse.Action) -> str:
    """Return a flag or argument as it is typed, such as `--images PATH …`."""
    choices = "|".join(map(str, action.choices)) if isinstance(action.choices, list) else ""
    value = "" if action.nargs == 0 else str(action.metavar or choices or action.dest.upper())
    value = {"+": f"{value} …", "*": f"[{value} …]", "?": f"[{value}]"}.get(str(action.nargs), value)
    return " ".join([*action.option_strings[:1], value]).strip()


def _name(action: argparse.Action) -> str:
    return f"`{_escape_bars(_words(action))}`"


def _meaning(action: argparse.Action) -> str:
    text = _escape((action.help or "") % {"default": action.default})
    return f"{text} (required)" if _is_required(action) else text


def _description(parser: CommandParser) -> list[str]:
    """Return the paragraphs of a command's help; those with indented lines become a block of text."""
    lines = []
    for paragraph in (parser.description or "").split("\n\n"):
        if paragraph.startswith(" ") or "\n " in paragraph:
            lines += ["", "```text", *paragraph.splitlines(), "```"]
        else:
            lines += ["", _escape(" ".join(paragraph.split()))]
    return lines


# Markdown


def _page(lines: Sequence[str]) -> str:
    return "\n".join([_MADE, *lines]) + "\n"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escape(text: str) -> str:
    """Escape what Markdown would read as tags, emphasis or borders of cells; code between backticks stays."""
    parts = text.split("`")
    plain = [re.sub(r"([*\[]|(?<!\w)_)", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    parts[::2] = plain
    return _escape_bars("`".join(parts))


def _escape_bars(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
