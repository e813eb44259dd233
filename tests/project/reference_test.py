"""Generated pages say what the code says, tables of results what their files say; the API page names what exists."""

import importlib
import pathlib
import re
from typing import Any

import pytest

from docs import generate
from histojax import models
from histojax.cli.main import RootParser
from histojax.training import default_config
from tests.conftest import ROOT

API = (ROOT / "docs" / "reference" / "api.md").read_text()


PAGES = generate.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_committed_page_is_what_the_code_and_the_results_say(page: pathlib.Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page], "run: python docs/generate.py"


def test_every_config_field_has_a_meaning() -> None:
    meanings = generate.config_meanings()
    assert set(meanings) == set(leaves(default_config.base()))
    assert not [field for field, meaning in meanings.items() if not meaning]


def leaves(node: Any, path: str = "") -> list[str]:
    """Return the fields below a group; a group without fields is a field."""
    if not hasattr(node, "items") or not len(node):
        return [path]
    return [field for name, value in node.items() for field in leaves(value, f"{path}.{name}".lstrip("."))]


def test_the_pages_have_every_command_and_model() -> None:
    pages = {path.name: text for path, text in PAGES.items() if path.parent == generate.REFERENCE}
    for verb in [*RootParser().verbs, "bench step", "bench slide"]:
        assert re.search(rf"^####? histojax {verb}$", pages["verbs.md"], re.MULTILINE)
    for name in models.names():
        assert f"\n### {name}\n" in pages["config.md"]
    assert "| `--tta none\\|dihedral` |" in pages["verbs.md"]  # a bar would end the cell
    assert "&lt;stem of --output>" in pages["verbs.md"]  # a browser would hide a tag
    assert not re.search(r"\| +\|", "".join(pages.values())), "a cell is empty"


def test_every_name_of_the_api_page_exists() -> None:
    directives = re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", API, re.MULTILINE)
    assert len(directives) > 15
    for name, members in directives:
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
        for member in filter(None, members.split(", ")):
            assert getattr(found, member).__doc__, f"{name}.{member}"
