"""Messages advise what the program accepts: every flag and config field that a text in the source names exists."""

import ast
import pathlib
import re
from collections.abc import Iterator

from histojax import main as door
from histojax import models
from histojax.cli.main import RootParser
from histojax.training import default_config
from tests.conftest import ROOT

SOURCES = [path for room in ("histojax", "data_pipelines", "configs") for path in sorted((ROOT / room).rglob("*.py"))]
GROUPS = tuple(default_config.base())
# Of docker, git and Python's own modules; `--run` is a flag that users may guess.
OTHER_FLAGS = {"--shm-size", "--error-unmatch", "--porcelain", "--module", "--run"}
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


def flags() -> set[str]:
    """Return the flags of all commands, those of the parsers below `bench` among them."""
    found, parsers = {"--mode"}, [RootParser()]
    while parsers:
        parser = parsers.pop()
        found |= set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    return found


def is_field(name: str) -> bool:
    node = default_config.base()
    if name.startswith("model.options."):
        return any(name.split(".")[2] in models.spec(model).options for model in models.names())
    for part in name.split("."):
        if part not in node:
            return False
        node = node[part]
    return True


def problems(text: str, known: set[str]) -> list[str]:
    """Return the flags and fields in a text that do not exist."""
    found = []
    for flag in re.findall(r"(?<![\w-])(--[a-z][a-z_-]*[a-z])(?![\w.{-])", text):
        if flag != "--config" and flag not in known | OTHER_FLAGS:
            found.append(flag)
    names = re.findall(r"--config\.([a-z_.0-9]*[a-z0-9])(?![\w{])", text)
    names += re.findall(rf"(?<![\w./-])((?:{'|'.join(GROUPS)})\.[a-z][a-z_.0-9]*[a-z0-9])(?![\w({{/])", text)
    return found + [name for name in names if not is_field(name) and name not in FILES]


def test_a_text_with_wrong_advice_is_found() -> None:
    known = flags()
    assert problems("use --batch_size=8 or --config.train.batch_size; data.mean={}", known) == []
    assert problems("use --batchsize=8, (--wrapper) or --config.train.batchsize", known) == [
        *("--batchsize", "--wrapper"),
        "train.batchsize",
    ]
    assert problems("set data.on_bad_imag=skip, loss.gamma", known) == ["data.on_bad_imag", "loss.gamma"]


def test_every_flag_and_field_that_a_text_names_exists() -> None:
    assert door.__doc__
    assert "--mode" in door.__doc__
    known = flags()
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, text in texts(path)
        for name in problems(text, known)
    ]
    assert len(SOURCES) > 100
    assert not wrong, "\n".join(wrong)
