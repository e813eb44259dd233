"""Notebooks of the documentation: stored outputs, in order, small, without errors and without paths of a machine."""

import importlib.util
import json
import pathlib
import re
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

PATHS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 300 * 1024  # bytes of a notebook
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|mnt|Users)/")


def cells(path: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_there_are_notebooks_and_the_navigation_names_each() -> None:
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = next(section["Notebooks"] for section in sections if "Notebooks" in section)
    pages = [page for entry in listed for page in entry.values()]
    assert len(pages) == 3
    assert sorted(pages) == [f"notebooks/{path.name}" for path in PATHS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom(path: pathlib.Path) -> None:
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum(bool(cell["outputs"]) for cell in code) > len(code) / 2


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_place_of_a_machine(path: pathlib.Path) -> None:
    assert path.stat().st_size < LARGEST
    texts = ["".join(cell["source"]) for kind in ("code", "markdown") for cell in cells(path, kind)]
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            texts += ["".join(output.get("text", ""))]
            texts += ["".join(data) for kind, data in output.get("data", {}).items() if kind == "text/plain"]
    assert not [text for text in texts if MACHINE.search(text)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_becomes_a_page_with_its_outputs(path: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    page = module.markdown(json.loads(path.read_text()))
    assert page.startswith("# ")
    assert page.count("```python\n") == len(cells(path, "code"))
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/(?:png|jpeg|svg\+xml);base64,[\w+/=]+">', page)
    assert pictures
    assert all(len(alt) > 20 for alt in pictures)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path: pathlib.Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links
    assert not [link for link in links if not (path.parent / link).is_file()]
