"""Messages advise what the program accepts: every flag and config field that a text in the source names exists."""

import argparse
import ast
import pathlib
import re
from collections.abc import Iterator

from histojax import models
from histojax.cli.main import RootParser
from histojax.training import default_config
from tests.conftest import ROOT

SOURCES = [path for room in ("histojax", "data_pipelines", "configs") for path in sorted((ROOT / room).rglob("*.py"))]
_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z_-]*[a-z])(?![\w.{-])")
GROUPS = tuple(default_config.base())
# Of docker, git and Python's own modules; `--run` and `--init_from` are flags that users may guess.
OTHER_FLAGS = {"--config", "--shm-size", "--error-unmatch", "--porcelain", "--module", "--run", "--init_from"}
FILES = {"model.safetensors", "model.onnx", "model.stablehlo", "data.pkl"}  # not fields


def texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string that is no docstring; "{}" stands for what an f-string fills in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            filled = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, filled))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts:
            yield node.lineno, node.value


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the flags of a parser and of those below it."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found |= set[str]().union(*map(flags_of, action.choices.values()))
    return found


VERBS = {name: flags_of(parser) for name, parser in RootParser().verbs.items()}
FLAGS = {"--mode", "--version"}.union(*VERBS.values())


def is_field(name: str) -> bool:
    node = default_config.base()
    if name.startswith("model.options."):
        return any(name.split(".")[2] in models.spec(model).options for model in models.names())
    for part in name.split("."):
        if part not in node:
            return False
        node = node[part]
    return True


def problems(text: str) -> list[str]:
    """Return the flags and fields in a text that do not exist, and flags of commands that lack them."""
    found = [flag for flag in _FLAG.findall(text) if flag not in FLAGS | OTHER_FLAGS]
    names = re.findall(r"--config\.([a-z_.0-9]*[a-z0-9])(?![\w{])", text)
    names += re.findall(rf"(?<![\w./-])((?:{'|'.join(GROUPS)})\.[a-z][a-z_.0-9]*[a-z0-9])(?![\w({{/])", text)
    found += [name for name in names if not is_field(name) and name not in FILES]
    for verb, rest in re.findall(r"histojax ([a-z]+(?: train-tiles| agreement| outcome)?)\b([^`;)\n]*)", text):
        if verb in VERBS:
            found += [f"histojax {verb} {flag}" for flag in _FLAG.findall(rest) if flag not in VERBS[verb]]
    return found


def test_a_text_with_wrong_advice_is_found() -> None:
    assert (
        problems("use --batch_size=8 or --config.train.batch_size; data.mean={}; histojax predict {} --output x") == []
    )
    assert problems("use --batchsize=8, (--wrapper) or --config.train.batchsize") == [
        *("--batchsize", "--wrapper"),
        "train.batchsize",
    ]
    assert problems("set data.on_bad_imag=skip, loss.gamma") == ["data.on_bad_imag", "loss.gamma"]
    assert problems("rerun `histojax report {} --data_root x`") == ["histojax report --data_root"]


def test_every_flag_and_field_that_a_text_names_exists() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, text in texts(path)
        for name in problems(text)
    ]
    assert len(SOURCES) > 100
    assert not wrong, "\n".join(wrong)
