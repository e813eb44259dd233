"""Galleries: errors and confidence by hand, tables of every kind, and the page in a browser."""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.evaluation.view import gallery, static
from histojax.evaluation.view.gallery import Gallery, Item, items_of_table
from tests.helpers import chromium
from tests.helpers.chromium import Browser
from tests.helpers.prediction_tables import class_table, labels_table
from tests.helpers.served import served

EVIL = "<img src=x onerror=alert(1)>"
CARDS = "[...document.querySelectorAll('#images li b')].map((name) => name.textContent)"


def item(name: str, p: float, truth: str | None, maps: Sequence[str] = (), split: str = "") -> Item:
    """An image with the probability p of malignant."""
    predicted = frozenset(["malignant" if p >= 0.5 else "benign"])
    probabilities = {"benign": 1 - p, "malignant": p}
    return Item(name, probabilities, None if truth is None else frozenset([truth]), predicted, ["40X"], maps, split)


def data(site: Gallery) -> dict[str, object]:
    content = site.read("index.html")
    assert content is not None
    found = re.search(r'id="data">(.*?)</script>', content.decode(), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_error_confidence_and_wrong_by_hand() -> None:
    right, wrong, unknown = item("a", 0.8, "malignant"), item("b", 0.8, "benign"), item("c", 0.8, None)
    assert (right.error, right.confidence, right.wrong) == (pytest.approx(0.2), 0.8, False)
    assert (wrong.error, wrong.confidence, wrong.wrong) == (pytest.approx(0.8), 0.8, True)
    assert (unknown.error, unknown.confidence, unknown.wrong) == (None, 0.8, None)
    several = Item("d", {"x": 0.9, "y": 0.4, "z": 0.2}, frozenset("yz"), frozenset("xy"))
    assert (several.error, several.confidence, several.wrong) == (0.9, 0.4, True)
    nothing = Item("e", {"x": 0.3, "y": 0.1}, frozenset(), frozenset())
    assert (nothing.error, nothing.confidence, nothing.wrong) == (0.3, 0.7, False)
    assert Item("f", {"x": 0.3}, frozenset("x"), None).wrong is None


def test_a_table_of_one_class_per_image() -> None:
    items = items_of_table(class_table(n=40), "t", {})
    table = class_table(n=40)
    assert [one.image_id for one in items] == table["image_id"].tolist()
    for one, (_, row) in zip(items, table.iterrows(), strict=True):
        assert one.truth == {row["label"]}
        assert one.predicted == {"malignant" if row["prob_malignant"] > row["prob_benign"] else "benign"}
        assert one.error == pytest.approx(1 - row[f"prob_{row['label']}"])
        assert list(one.facts) == [f"patient {row['patient_id']}"]


def test_a_table_of_several_labels_uses_the_thresholds() -> None:
    table = labels_table(n=30)
    cuts = {"tumor": 0.1, "stroma": 0.9, "fat": 0.5}
    for one, (_, row) in zip(items_of_table(table, "t", cuts), table.iterrows(), strict=True):
        assert one.truth == {name for name in cuts if row[f"label_{name}"]}
        assert one.predicted == {name for name, cut in cuts.items() if row[f"prob_{name}"] >= cut}


def test_a_table_of_predict_has_its_own_decisions_and_may_have_no_labels() -> None:
    base = {"image_id": ["a", "b"], "prob_x": [0.9, 0.3], "prob_y": [0.1, 0.7]}
    decided = items_of_table(pd.DataFrame(base | {"predicted": ["y", "y"]}), "t", {})
    assert [one.predicted for one in decided] == [{"y"}, {"y"}]
    assert [one.truth for one in decided] == [None, None]
    several = pd.DataFrame(base | {"predicted_x": [1, 0], "predicted_y": [1, 0], "label": ["x+y", "fat"]})
    items = items_of_table(several, "t", {})
    assert [one.predicted for one in items] == [{"x", "y"}, set()]
    assert [one.truth for one in items] == [{"x", "y"}, None]  # fat is no label of the model


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": ["a"]}, "t: no column `image_id`, or none that starts with `prob_`"),
        ({"prob_x": [1.0]}, "t: no column `image_id`"),
        ({"image_id": ["a"], "prob_x": [1.1]}, "t: a cell of the columns prob_… is no number in 0 … 1"),
        ({"image_id": ["a"], "prob_x": ["?"]}, "t: a cell of the columns"),
        ({"image_id": ["a"], "prob_x": [None]}, "t: a cell of the columns"),
    ],
)
def test_other_tables_are_refused(columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(RunError, match=re.escape(message)):
        items_of_table(pd.DataFrame(columns), "t", {})


def test_the_largest_errors_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_IMAGES", 2)
    items = [item("a", 0.1, "benign"), item("b", 0.2, "malignant"), item("c", 0.9, "benign")]
    asked: list[int] = []
    site = Gallery("t", items, ["benign", "malignant"], lambda index, _: asked.append(index) or b"jpeg")
    assert [one["name"] for one in data(site)["items"]] == ["c", "b"]  # type: ignore[attr-defined]
    assert b"2 images of 3, those with the largest errors" in (site.read("index.html") or b"")
    assert site.read("pictures/0.jpg") == b"jpeg"
    assert asked == [2]
    with pytest.raises(RunError, match="has no image"):
        Gallery("t", [], ["x"], lambda *_: None)


@pytest.mark.parametrize("path", ["pictures/3.jpg", "pictures/0_1.jpg", "pictures/-1.jpg", "pictures/0_.jpg",
                                  "pictures/", "../index.html", "assets/none.js", "", "pictures/0.png"])  # fmt: skip
def test_other_paths_are_not_found(path: str) -> None:
    site = Gallery("t", [item(name, 0.5, None, ["benign"]) for name in "abc"], ["benign", "malignant"], lambda *_: b"x")
    assert site.read(path) is None
    assert site.read("pictures/0_0.jpg") == b"x"
    assert set(site.paths()) >= {
        "index.html",
        "assets/gallery.js",
        "assets/view.css",
        "pictures/2.jpg",
        "pictures/2_0.jpg",
    }


def test_names_are_escaped() -> None:
    site = Gallery(EVIL, [item(f"{EVIL}</script>\u202e", 0.5, EVIL)], ["benign", "malignant", EVIL], lambda *_: None)
    source = (site.read("index.html") or b"").decode()
    assert EVIL not in source
    (shown,) = data(site)["items"]  # type: ignore[misc]
    assert shown["name"] == f"{EVIL}</script>\\u202e"
    assert source.count("</script>") == 2


def colour(index: int, number: int | None) -> bytes | None:
    """A picture whose red says which image it is, and whose green which map; none of the third image."""
    pixels = np.full((20, 30, 3), (0, 0 if number is None else 200, 40 * index), np.uint8)
    return None if index == 2 else bytes(cv2.imencode(".jpg", pixels)[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium.start(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def set_choice(browser: Browser, name: str, value: str) -> None:
    element = f"document.getElementById({json.dumps(name)})"
    browser.evaluate(f"{element}.value = {json.dumps(value)}; {element}.dispatchEvent(new Event('change'))")


def test_the_page_sorts_filters_and_shows_maps(browser: Browser) -> None:
    items = [
        item("d/a.png", 0.9, "malignant", ["malignant"], "val"),
        item("b.png", 0.95, "benign", ["malignant"], "test"),
    ]
    items += [item("c.png", 0.4, "malignant", ["benign", "malignant"], "test"), item(EVIL, 0.45, None, ["benign"])]
    with served(Gallery("images", items, ["benign", "malignant"], colour)) as server:
        browser.open(server.url)
        assert browser.evaluate(CARDS) == ["b.png", "c.png", "a.png", EVIL]
        assert "wrong for 2 of them" in browser.evaluate("document.body.textContent")
        assert "Predicted: malignant (wrong)" in browser.evaluate("document.querySelector('#images li').textContent")
        for name, value, expected in (
            ("order", "sure", ["b.png", "a.png", "c.png", EVIL]),
            ("order", "unsure", [EVIL, "c.png", "a.png", "b.png"]),
            ("correct", "wrong", ["c.png", "b.png"]),
            ("truth", "1", ["c.png"]),
            ("correct", "", ["c.png", "a.png"]),
            ("predicted", "1", ["a.png"]),
            ("split", "test", []),
        ):
            set_choice(browser, name, value)
            assert browser.evaluate(CARDS) == expected, (name, value)
        assert browser.evaluate("document.getElementById('count').textContent") == "No image fits"
        for name in ("truth", "predicted", "split"):
            set_choice(browser, name, "")
        set_choice(browser, "order", "error")

        picture = "document.querySelector('#images li img')"
        browser.until(f"{picture}.complete && {picture}.naturalWidth === 30")
        assert browser.evaluate(f"{picture}.src").endswith("pictures/0.jpg")
        browser.tab_to("#images li button")
        browser.key("Enter")
        assert browser.evaluate(f"{picture}.src").endswith("pictures/0_0.jpg")
        assert browser.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert browser.evaluate("document.activeElement.ariaLabel") == "Grad-CAM of malignant: b.png"
        browser.key("Enter")
        assert browser.evaluate(f"{picture}.src").endswith("pictures/0.jpg")
        set_choice(browser, "map", "top")
        sources = browser.evaluate(
            "[...document.querySelectorAll('#images li img')].map((i) => i.src.split('/').pop())"
        )
        assert sources[0] == "0_0.jpg"
        set_choice(browser, "map", "")
        browser.until("document.querySelectorAll('#images .none').length === 1")  # the picture that there is not
        browser.click("#filter")
        browser.type("B.PNG")
        assert browser.evaluate(CARDS) == ["b.png"]
        unnamed = [role for role, name in browser.names() if role in ("button", "combobox", "searchbox") and not name]
        assert not unnamed
        browser.problems[:] = [text for text in browser.problems if "404" not in text]
        assert not browser.problems


def test_many_images_are_shown_page_by_page_and_fit_narrow_windows(browser: Browser) -> None:
    items = [item(f"{i:03}", i / 200, "benign") for i in range(100)]
    with served(Gallery("images", items, ["benign", "malignant"], lambda *_: colour(0, None))) as server:
        browser.resize(400, 800)
        browser.open(server.url)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 400
        assert browser.evaluate("document.getElementById('previous').disabled") is True
        shown = list(browser.evaluate(CARDS))
        for _ in range(2):
            browser.click("#next")
            shown += browser.evaluate(CARDS)
        assert shown == [f"{i:03}" for i in reversed(range(100))]
        assert browser.evaluate("document.getElementById('next').disabled") is True
        assert browser.evaluate("document.getElementById('count').textContent") == "Images 97 to 100 of 100"
    browser.resize(1280, 900)


def test_a_gallery_can_be_a_folder(tmp_path: pathlib.Path, browser: Browser) -> None:
    static.write(
        Gallery("t", [item("a", 0.9, None, ["benign"])], ["benign", "malignant"], colour), tmp_path / "out", "1"
    )
    browser.problems.clear()
    browser.open((tmp_path / "out" / "index.html").as_uri())
    browser.until("document.querySelector('#images img')?.naturalWidth === 30")
    assert not browser.problems
