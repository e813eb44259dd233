"""Pictures of README and docs: used, small, described for readers who cannot see them, their origin beside them."""

import html.parser
import json
import pathlib
import posixpath

import pytest

from docs import figures
from tests.conftest import ROOT

IMAGES = "docs/images"
STORED = sorted(path.name for path in (ROOT / IMAGES).iterdir())
PICTURES = [name for name in STORED if not name.endswith(".json")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Tags(html.parser.HTMLParser):
    """Collects the attributes of a page's pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))


def uses() -> list[tuple[str, dict[str, str | None]]]:
    """The path of every picture in README and docs, from the root, with its attributes; pages in order."""
    found = []
    for page in PAGES:
        folder = page.parent.relative_to(ROOT).as_posix()
        for image in Tags(page.read_text()).images:
            found.append((posixpath.normpath(posixpath.join(folder, image["src"] or "")), image))
    return found


def test_every_picture_is_used_and_every_used_one_exists() -> None:
    assert {f"{IMAGES}/{name}" for name in PICTURES} == {path for path, _ in uses()}


def test_every_picture_has_an_alternative_text_that_says_what_it_shows() -> None:
    for path, image in uses():
        assert len((image.get("alt") or "").split()) >= 12, path
        assert int(image.get("width") or 0) > 0, path  # pages do not move when it loads


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_complete(name: str) -> None:
    path = ROOT / IMAGES / name
    assert path.stat().st_size < 250_000
    assert path.suffix in (".svg", ".webp")
    if path.suffix == ".svg":
        text = path.read_text()
        assert "<image" not in text
        assert 'fill="#ffffff"' in text, "without a white card it cannot be read on a dark page"


@pytest.mark.parametrize("name", PICTURES)
def test_the_origin_lies_beside_a_picture(name: str) -> None:
    origin = json.loads((ROOT / IMAGES / pathlib.Path(name).with_suffix(".json")).read_text())
    assert origin["picture"] == name
    for fact in ("commands", "data", "attribution", "protocol", "split_hash", "machine", "commit"):
        assert origin[fact], fact


def test_one_command_draws_every_picture() -> None:
    assert sorted(figures.PICTURES) == PICTURES
    assert {pathlib.Path(name).stem for name in STORED} == {pathlib.Path(name).stem for name in PICTURES}


def test_the_leak_meter_is_that_of_the_results() -> None:
    drawn = (ROOT / IMAGES / "leak_meter.svg").read_text()
    rows = json.loads(figures.LEAK_METER.read_text())["rows"]
    assert len(rows) == 4
    for row in rows.values():
        accuracy = row["figures"]["accuracy"]["pooled"]
        assert f"{row['protocol']}: {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]" in drawn


def test_the_readme_shows_a_picture_within_its_first_lines() -> None:
    assert "<img " in "\n".join((ROOT / "README.md").read_text().splitlines()[:12])
