"""The pages of a cohort: every slide is listed, escaped, and shown with what is known of it."""

import base64
import hashlib
import html.parser
import http.client
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.core.walk import find_files
from histojax.evaluation.view import static
from histojax.evaluation.view.site import MEDIA_TYPES, POLICY
from histojax.slides import tile_table
from histojax.slides.content import content_hash
from histojax.slides.labels import carried_labels
from histojax.slides.view.cohort_site import VENDOR, CohortSite
from tests.helpers import viewed_cohort
from tests.helpers.served import served
from tests.helpers.viewed_cohort import EVIL, EVIL_KEY

THRESHOLDS = {"tumor": 0.4, "stroma": 0.65}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return viewed_cohort.write(tmp_path_factory.mktemp("viewed"))


@pytest.fixture
def output(written: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the results that a test may change; the slides stay where they are."""
    return shutil.copytree(written, tmp_path / "out")


@pytest.fixture
def site(written: pathlib.Path) -> Iterator[CohortSite]:
    found = CohortSite(written)
    yield found
    found.close()


class Page(html.parser.HTMLParser):
    """Tags and text of a page, and the JSON in it."""

    def __init__(self, content: bytes | None) -> None:
        super().__init__()
        assert content is not None
        self.source = content.decode()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._script = False
        self.data: dict[str, Any] = {}
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.data = json.loads(data)
        elif not self._script:
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def slide_page(site: CohortSite, key: str) -> Page:
    return Page(site.read(f"slides/{key}/index.html"))


def array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_openseadragon_is_the_published_version_with_its_license() -> None:
    script, text = VENDOR / "openseadragon.min.js", (VENDOR / "openseadragon.LICENSE.txt").read_text()
    assert {path.name for path in VENDOR.iterdir()} == {script.name, "openseadragon.LICENSE.txt"}
    assert script.read_text(encoding="utf-8").startswith("//! openseadragon 6.1.1\n")
    # Of build/openseadragon/openseadragon.min.js in openseadragon-6.1.1.tgz of the npm registry.
    sha256 = "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad"
    assert hashlib.sha256(script.read_bytes()).hexdigest() == sha256
    assert "OpenSeadragon contributors" in text
    assert "Redistributions of source code must retain the above copyright notice" in text


def test_the_list_has_every_slide_with_its_figures_or_the_reason(site: CohortSite, written: pathlib.Path) -> None:
    page = Page(site.read("index.html"))
    assert "6 slides: 4 evaluated, 1 failed, 1 not evaluable" in page.text
    assert "Research use only. Not for diagnosis." in page.text
    table = pd.read_csv(written / "slides.csv").set_index("name")
    for name in ("a", "lost"):
        assert f"{table.loc[name, 'stroma_percentage']:.1f}" in page.text
    assert f"{table.loc['b', 'region_stroma_percentage']:.1f}" in page.text
    assert "no tissue tiles" in page.text
    assert "broken.svs" in page.text
    links = [link["href"] for link in page.attributes("a")]
    for key in viewed_cohort.KEYS.values():
        assert f"slides/{key}/index.html" in links


def test_every_path_can_be_read_and_every_link_leads_to_a_path(site: CohortSite) -> None:
    paths = list(site.paths())
    assert len(paths) == len(set(paths))
    for path in paths:
        assert site.read(path), path
        assert pathlib.PurePosixPath(path).suffix in MEDIA_TYPES
        if not path.endswith(".html"):
            continue
        page = Page(site.read(path))
        for tag, name in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")):
            for link in (str(attributes[name]) for attributes in page.attributes(tag) if name in attributes):
                assert not re.match(r"\w+:|/", link) or link == "data:,", link
                if not link.startswith(("#", "data:")):
                    assert str((pathlib.Path("/") / path).parent.joinpath(link).resolve())[1:] in paths, link


def test_names_and_messages_are_escaped(output: pathlib.Path) -> None:
    label = f"{EVIL}</script>"
    for folder in (EVIL, "a"):
        record = json.loads((output / folder / "slide.json").read_text())
        record |= {"name": EVIL, "slide": f"/none/{EVIL}" if folder == EVIL else record["slide"]}
        record |= {"warnings": [f"{label}\u202e\0"], "thresholds": {"tumor": 0.4, label: 0.5}}
        (output / folder / "slide.json").write_text(json.dumps(record))
        table = tile_table.read(output / folder / "tiles.parquet")
        tile_table.write(table.rename(columns={"prob_stroma": f"prob_{label}"}), output / folder)
    site = CohortSite(output)
    for path in ("index.html", f"slides/{EVIL_KEY}/index.html", "slides/a/index.html"):
        page = Page(site.read(path))
        assert EVIL in page.text
        assert not any("onerror" in attributes for _, attributes in page.tags)
        assert EVIL not in page.source
        assert "\u202e" not in page.source
    site.close()


def test_pages_run_no_script_of_their_own(site: CohortSite) -> None:
    for path in (path for path in site.paths() if path.endswith(".html")):
        page = Page(site.read(path))
        policies = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == [POLICY]
        assert "unsafe" not in POLICY
        for script in page.attributes("script"):
            assert script.get("src") or script["type"] == "application/json"
        assert not page.attributes("style")
        assert not [
            name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"
        ]


def test_a_slide_page_has_its_tiles_as_the_tables_have_them(site: CohortSite, written: pathlib.Path) -> None:
    data = slide_page(site, "a").data
    table = tile_table.read(written / "a" / "tiles.parquet")
    assert data["tiles"]["count"] == len(table) > 100
    for name in ("row", "column"):
        np.testing.assert_array_equal(array(data["tiles"][name], "<u4"), table[name])
    probability = array(data["tiles"]["probability"], "<u2").reshape(2, -1) / 10_000
    np.testing.assert_allclose(probability.T, table[["prob_tumor", "prob_stroma"]], atol=5.1e-5)
    carried = array(data["tiles"]["carried"], "u1").reshape(2, -1).astype(bool)
    np.testing.assert_array_equal(carried.T, carried_labels(table, THRESHOLDS))
    assert [(label["name"], label["colour"], label["threshold"]) for label in data["labels"]] == [
        ("tumor", [200, 0, 0], 0.4),
        ("stroma", [150, 200, 150], 0.65),
    ]
    assert data["grid"] == {"tile": 48, "tileHeight": 48, "stride": 48, "strideHeight": 48, "left": 0.0, "top": 0.0}
    assert array(data["heat"], "u1").shape == (256 * 3,)
    assert data["slide"]["Image"]["Size"] == {"Width": 1200, "Height": 900}


def test_a_slide_page_has_the_figures_and_outlines(site: CohortSite, written: pathlib.Path) -> None:
    page = slide_page(site, "b")
    measured = json.loads((written / "b" / "tsr.json").read_text())["areas"]
    assert f"Stroma percentage, region {measured['region']['stroma_percentage']['value']:.1f} %" in page.text
    region, spot = page.data["outlines"]
    assert (region["name"], spot["name"]) == ("region of interest", "hot spot")
    assert sorted(map(tuple, region["rings"][0]))[0] == (110, 80)
    box = measured["hot spot"]["box"]
    corners = np.array(spot["rings"][0])
    assert corners.min(0).tolist() == [box["minx"], box["miny"]]
    assert corners.max(0).tolist() == [box["minx"] + box["width"], box["miny"] + box["height"]]
    assert "95 % intervals in parentheses" in page.text
    assert page.attributes("img")[0]["src"] == "overlay.png"


def test_slides_without_pixels_tiles_or_results_have_pages(site: CohortSite) -> None:
    lost = slide_page(site, "lost")
    assert "The slide itself is not shown" in lost.text
    assert "lost.tif was not found. --slides DIR says where the slides are now." in lost.text
    assert len(lost.attributes("img")) == 5
    assert not lost.attributes("canvas")
    assert "Stroma percentage, whole tissue" in lost.text
    glass = slide_page(site, "glass")
    assert "Not evaluable: no tissue tiles" in glass.text
    assert "The slide has no tiles." in glass.text
    broken = slide_page(site, "broken")
    assert "The analysis of this slide failed" in broken.text
    for rest in ("thumbnail.jpg", "overlay.png", "slide.dzi", "slide_files/0/0_0.jpg"):
        assert site.read(f"slides/broken/{rest}") is None


def test_a_slide_is_found_by_its_bytes_where_it_is_now(
    written: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    record = json.loads((output / "a" / "slide.json").read_text())
    original = pathlib.Path(record["slide"])
    moved = tmp_path / "moved" / "deep" / "a.tif"
    moved.parent.mkdir(parents=True)
    moved.write_bytes((written.parent / "slides" / "b.tif").read_bytes())  # another slide of this name
    (output / "a" / "slide.json").write_text(json.dumps(record | {"slide": "/gone/a.tif"}))
    site = CohortSite(output, tmp_path / "moved")
    assert "a.tif has changed since its analysis" in slide_page(site, "a").text
    assert site.read("slides/a/slide_files/0/0_0.jpg") is None
    (moved.parent / "copy").mkdir()
    shutil.copy(original, moved.parent / "copy" / "a.tif")
    site = CohortSite(output, tmp_path / "moved")
    assert slide_page(site, "a").data["slide"]
    assert site.read("slides/a/slide_files/0/0_0.jpg")
    site.close()
    with pytest.raises(RunError, match="no such folder; give the folder where the slides are now"):
        CohortSite(output, tmp_path / "absent")


def test_a_slide_that_cannot_be_opened_has_its_pictures(output: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.tif").write_text("no slide")
    record = json.loads((output / "a" / "slide.json").read_text())
    record["slide"], record["settings"]["content"] = str(tmp_path / "a.tif"), content_hash(tmp_path / "a.tif")
    (output / "a" / "slide.json").write_text(json.dumps(record))
    site = CohortSite(output)
    page = slide_page(site, "a")
    assert "The slide itself is not shown" in page.text
    assert "a.tif: is not a slide or image" in page.text
    assert len(page.attributes("img")) == 5
    assert not [path for path in site.paths() if path.startswith("slides/a/slide_files")]
    assert site.read("slides/a/thumbnail.jpg")
    site.close()


def test_a_region_that_moved_or_changed_is_reported(output: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = output / "b" / "slide.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"roi": "/gone/b.geojson"}))
    site = CohortSite(output)
    page = slide_page(site, "b")
    assert "the region of interest is not shown" in page.text
    assert [outline["name"] for outline in page.data["outlines"]] == ["hot spot"]
    (tmp_path / "b.geojson").write_text("{}")
    path.write_text(json.dumps(record | {"roi": str(tmp_path / "b.geojson")}))
    site.refresh()
    assert "b.geojson has changed since the analysis" in slide_page(site, "b").text
    site.close()


def test_labels_of_earlier_versions_are_shown_only_if_their_thresholds_are_known(output: pathlib.Path) -> None:
    path = output / "a" / "slide.json"
    record = json.loads(path.read_text())
    assert record.pop("thresholds") == THRESHOLDS
    path.write_text(json.dumps(record))
    site = CohortSite(output)
    assert array(slide_page(site, "a").data["tiles"]["carried"], "u1").any()
    (output / "a" / "tsr.json").unlink()
    site.refresh()
    page = slide_page(site, "a")
    assert not page.data["thresholds_known"]
    assert "Not recorded by the version that analyzed this slide" in page.text
    assert "Not measured: the model has no labels for tumor and stroma" in page.text
    assert "not measured" in Page(site.read("index.html")).text
    site.close()


@pytest.mark.parametrize("content", ["", "{", "{}", '{"status": "done", "name": "a"}', '{"status": 1, "name": 2}'])
def test_a_damaged_slide_hides_no_other(content: str, output: pathlib.Path) -> None:
    (output / "a" / "slide.json").write_text(content)
    site = CohortSite(output)
    assert "slides/b/index.html" in Page(site.read("index.html")).source
    if '"name"' in content:
        with pytest.raises(RunError, match="analyze the slide again with --redo"):
            site.read("slides/a/index.html")
    site.close()


@pytest.mark.parametrize(
    "area", [{}, {"status": "evaluated", "reason": None}, 3, {"status": "evaluated", "reason": ""}]
)
def test_damaged_figures_hide_no_other(area: object, output: pathlib.Path) -> None:
    (output / "a" / "tsr.json").write_text(json.dumps({"areas": {"whole tissue": area}}))
    site = CohortSite(output)
    assert "1 damaged" in Page(site.read("index.html")).text
    with pytest.raises(RunError, match="analyze the slide again with --redo"):
        site.read("slides/a/index.html")
    site.close()


def test_a_cohort_that_grows_is_listed_again(output: pathlib.Path) -> None:
    hidden = output.parent / "later"
    (output / "b").rename(hidden)
    site = CohortSite(output)
    assert site.read("slides/b/index.html") is None
    hidden.rename(output / "b")
    assert "slides/b/index.html" in Page(site.read("index.html")).source
    assert site.read("slides/b/index.html")
    site.close()


def test_a_folder_without_slides_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="no slide is finished here"):
        CohortSite(tmp_path)


def test_other_paths_and_links_out_of_the_folder_are_not_found(output: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (output / "secret.png").write_bytes(b"secret")
    (output / "a" / "heatmap_x.png").symlink_to(tmp_path / "secret.png")
    (output / "a" / "other.png").write_bytes(b"secret")
    (output / "linked").symlink_to(shutil.copytree(output / "a", tmp_path / "elsewhere"))
    site = CohortSite(output)
    assert "linked" not in Page(site.read("index.html")).source
    with served(site) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        base = "/" + server.url.rsplit("/", 2)[1]

        def status(path: str) -> int:
            connection.putrequest("GET", base + path, skip_host=False)
            connection.endheaders()
            answer = connection.getresponse()
            assert b"secret" not in answer.read()
            return answer.status

        assert status("/slides/a/overlay.png") == 200
        for path in (
            "/slides/a/heatmap_x.png", "/slides/a/other.png", "/secret.png", "/slides/../secret.png", "/../secret.png",
            "/slides/a/../../secret.png", "/slides/a/%2e%2e/%2e%2e/secret.png", "/slides/a/..%2f..%2fsecret.png",
            f"/slides/a/{tmp_path}/secret.png", f"/{tmp_path}/secret.png", "/slides/a/overlay.png%00",
            "/slides/a/slide.json",
            "/slides/linked/index.html", "/slides/linked/overlay.png", "/slides/a/slide_files/99/0_0.jpg", "/slides/a/",
            "/slides/a/slide_files/0/../0/0_0.jpg", "/slides/a/slide_files/0/0_0.png", "/slides/none/index.html",
            "/assets/../index.html", "/slides/a/overlay.png/", "/slides/a/heatmap_/../overlay.png", "/slides",
        ):  # fmt: skip
            assert status(path) == 404, path
        connection.close()
    site.close()


def test_a_tile_table_behind_a_link_is_not_read(output: pathlib.Path, tmp_path: pathlib.Path) -> None:
    table = output / "a" / "tiles.parquet"
    shutil.move(table, tmp_path / "tiles.parquet")
    table.symlink_to(tmp_path / "tiles.parquet")
    site = CohortSite(output)
    with pytest.raises(RunError, match="links to a file outside"):
        site.read("slides/a/index.html")
    site.close()


def test_a_folder_holds_coarser_slides_and_is_no_input(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    site = CohortSite(written, finest_mpp=2.0)
    size = static.write(site, tmp_path / "pages", "1")
    assert size < 12e6
    finest = tmp_path / "pages" / "slides" / "a" / "slide_files" / "9" / "0_0.jpg"
    image = cv2.imread(str(finest))
    assert image is not None
    assert image.shape == (225, 300, 3)
    assert b'Width="300" Height="225"' in (tmp_path / "pages" / "slides" / "a" / "slide.dzi").read_bytes()
    found = [entry for entry in site.entries if entry.key not in ("broken", "lost")]
    assert site.size() == sum(site._pyramid(entry).pixels() for entry in found) // 4
    assert find_files(tmp_path, (".jpg", ".png")).paths == ()
    site.close()
