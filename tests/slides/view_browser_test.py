"""The pages of slides in a real browser: by mouse, by keyboard alone, served and from a folder."""

import pathlib
from collections.abc import Iterator

import pytest

from histojax.evaluation.view import static
from histojax.slides.view.cohort_site import CohortSite
from tests.helpers import chromium, viewed_cohort
from tests.helpers.chromium import Browser
from tests.helpers.served import served
from tests.helpers.viewed_cohort import EVIL, EVIL_KEY

# Until the page is parsed, there is no `viewer`; until the script has run, it is the element of that name.
OPENED = (
    "document.readyState === 'complete' && viewer.world?.getItemCount() > 0 && canvas.width > 0 "
    "&& document.querySelector('#scale span').textContent"
)
STILL = "viewer.world.getItemAt(0).getFullyLoaded()"
NAMES = "[...document.querySelectorAll('table.slides tbody tr:not([hidden]) th')].map((cell) => cell.textContent)"
ANNOUNCED = "document.getElementById('announcement').textContent"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    chromium.find()
    return viewed_cohort.write(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="module", params=["served", "folder"])
def base(
    request: pytest.FixtureRequest, output: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of the cohort's pages, with a slash at the end."""
    site = CohortSite(output)
    if request.param == "folder":
        pages = tmp_path_factory.mktemp("static") / "pages"
        static.write(site, pages, "1")
        yield pages.as_uri() + "/"
    else:
        with served(site) as server:
            yield server.url
    site.close()


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium.start(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(browsers: Browser, base: str) -> Iterator[Browser]:
    """A browser whose pages ask for nothing but themselves, and log no problem."""
    browsers.requests.clear()
    browsers.problems.clear()
    yield browsers
    assert not browsers.problems
    assert [url for url in browsers.requests if not url.startswith((base, "data:"))] == []


def open_slide(browser: Browser, base: str, key: str) -> None:
    browser.open(f"{base}slides/{key}/index.html")
    browser.until(OPENED)
    browser.until(STILL)


def pixel(browser: Browser, x: float, y: float, canvas: str = "canvas") -> list[int]:
    """The colour (with opacity) that layers have at a level-0 position of the slide."""
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    place = f"(w => [w.left + {x} * w.x, w.top + {y} * w.y])(place(devicePixelRatio))"
    return list(browser.evaluate(f"[...{canvas}.getContext('2d').getImageData(...{place}.map(Math.round), 1, 1).data]"))


def to_page(browser: Browser, x: float, y: float) -> tuple[float, float]:
    """The place in the window of a level-0 position of the slide."""
    browser.centre("#stage")
    box = f"(b => [b.left + w.left + {x} * w.x, b.top + w.top + {y} * w.y])(stage.getBoundingClientRect())"
    left, top = browser.evaluate(f"(w => {box})(place())")
    return left, top


def test_the_list_is_sorted_and_filtered(browser: Browser, base: str) -> None:
    browser.open(f"{base}index.html")
    assert browser.evaluate(NAMES) == [EVIL, "a", "b", "broken", "glass", "lost"]
    assert browser.evaluate("document.getElementById('count').textContent") == "6 of 6 slides shown"
    for _ in range(2):
        browser.click("thead th:nth-child(3) button")
        values = browser.evaluate("[...document.querySelectorAll('tbody tr')].map((row) => row.cells[2].dataset.value)")
        ascending = browser.evaluate("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"
        numbers = [float(value) for value in values if value]
        assert numbers == sorted(numbers, reverse=not ascending)
        assert values[-2:] == ["", ""], "slides without a figure stay at the end"
    browser.click("#filter")
    browser.type("STROMA-low")
    assert set(browser.evaluate(NAMES)) == {"a", "b", "lost", EVIL} - set(
        browser.evaluate(
            "rows.filter((row) => row.textContent.includes('stroma-high')).map((row) => row.cells[0].textContent)"
        )
    )
    browser.evaluate("document.getElementById('filter').value = ''")
    browser.evaluate(
        "(box => { box.value = 'failed'; box.dispatchEvent(new Event('change')); })(document.getElementById('status'))"
    )
    assert browser.evaluate(NAMES) == ["broken"]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 6 slides shown"
    loaded = "[...document.images].filter((image) => image.complete && image.naturalWidth).length"
    browser.evaluate("document.querySelectorAll('tr').forEach((row) => (row.hidden = false))")
    browser.until(f"{loaded} === 5")


def test_layers_lie_on_the_slide_and_follow_their_controls(browser: Browser, base: str) -> None:
    open_slide(browser, base, "a")
    tumor, stroma, glass = (300, 450), (1000, 450), (60, 450)
    assert pixel(browser, *tumor) == pytest.approx([200, 0, 0, 128], abs=1)
    assert pixel(browser, *stroma)[:3] == pytest.approx([150, 200, 150], abs=1)
    assert pixel(browser, *glass) == [0, 0, 0, 0]
    assert pixel(browser, *tumor, "muted") == [128, 128, 128, 255]
    browser.click("#label-0")
    assert pixel(browser, *tumor) == [0, 0, 0, 0]
    assert pixel(browser, *tumor, "muted") == [0, 0, 0, 0]
    slider = ".layer[data-kind=label][data-number='0'] input[type=range]"
    browser.tab_to(slider)
    browser.key("ArrowRight", 4)  # from 50 to 70 %, which shows the layer
    assert pixel(browser, *tumor) == pytest.approx([200, 0, 0, 0.7 * 255], abs=1)
    browser.click("[data-action=hide]")
    assert pixel(browser, *tumor) == [0, 0, 0, 0]
    assert browser.evaluate("document.querySelector('[data-action=hide]').getAttribute('aria-pressed')") == "true"
    browser.click("[data-action=hide]")
    for number in range(2):
        if browser.evaluate(f"document.getElementById('label-{number}').checked"):
            browser.click(f"#label-{number}")
    browser.click("#probability-0")
    colour = pixel(browser, *tumor)
    expected = browser.evaluate(
        f"(i => [...heat.slice(3 * i, 3 * i + 3)])(Math.round(255 * probability(0, "
        f"tileAt.get(Math.floor({tumor[1]} / 48) * 2 ** 26 + Math.floor({tumor[0]} / 48)))))"
    )
    assert colour[:3] == pytest.approx(expected, abs=3)
    assert colour[3] == pytest.approx(0.65 * 255, abs=1)
    tissue = "viewer.drawer.canvas.getContext('2d').getImageData(...(w => [w.left + 300 * w.x, w.top + 450 * w.y])"
    if base.startswith("http"):  # a picture of a folder cannot be read by scripts
        red, green, blue, _ = browser.evaluate(f"[...{tissue}(place(devicePixelRatio)).map(Math.round), 1, 1).data]")
        assert blue > green < red  # purple


def test_the_mouse_pans_zooms_and_reads_tiles(browser: Browser, base: str) -> None:
    open_slide(browser, base, "a")
    x, y = to_page(browser, 1000, 450)
    browser.mouse("mouseMoved", x, y)
    shown = browser.until("document.querySelector('#tile table')?.textContent ?? ''")
    values = browser.evaluate("describe(chosen)")
    assert [value["name"] for value in values] == ["tumor", "stroma"]
    assert [value["carried"] for value in values] == [False, True]
    assert values[1]["value"] in shown
    assert "predicted, threshold 0.650" in shown
    row, column = (browser.evaluate(f"tiles.{name}[chosen]") for name in ("row", "column"))
    assert (row, column) == (450 // 48, 1000 // 48)
    browser.mouse("mouseMoved", *to_page(browser, 60, 450))
    browser.until("document.getElementById('tile').textContent === 'No tile here.'")

    before = browser.evaluate("place().x")
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    browser.until(f"place().x > 1.2 * {before}")
    browser.until("!viewer.isAnimating?.() && " + STILL)
    assert browser.evaluate(f"positionOf({x} - stage.getBoundingClientRect().left, 0)[0]") == pytest.approx(1000, abs=3)

    left = browser.evaluate("place().left")
    button = {"button": "left", "clickCount": 1}
    browser.mouse("mousePressed", x, y, **button)
    for step in range(1, 6):
        browser.mouse("mouseMoved", x + 12 * step, y, buttons=1)
    browser.mouse("mouseReleased", x + 60, y, **button)
    browser.until(f"place().left > {left} + 40")
    assert "scale bar" in browser.evaluate("document.getElementById('scale').ariaLabel").lower()
    width = browser.evaluate("document.querySelector('#scale div').getBoundingClientRect().width")
    text = browser.evaluate("document.getElementById('scale').ariaLabel").removeprefix("Scale bar: ")
    micrometers = float(text.split()[0]) * (1000 if text.endswith("mm") else 1)
    assert width == pytest.approx(micrometers / 0.5 * browser.evaluate("place().x"), rel=0.05)


def test_a_keyboard_alone_is_enough(browser: Browser, base: str) -> None:
    """Open the cohort, sort by stroma, open a slide, switch layers, read a number, see the hot spot."""
    browser.open(f"{base}index.html")
    browser.tab_to(".skip", 1)
    browser.tab_to("#filter")
    browser.tab_to("thead th:nth-child(3) button")
    browser.key("Enter")
    browser.key("Enter")
    assert browser.evaluate("document.activeElement.parentElement.getAttribute('aria-sort')") == "descending"
    browser.tab_to("a[href='slides/b/index.html']")
    browser.key("Enter")
    browser.until(f"document.title === 'b' && {OPENED}")
    assert "%" in browser.evaluate("document.getElementById('stroma').textContent")

    browser.tab_to("[data-action=outline][data-number='1']")
    focus = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.evaluate(focus) == "solid"
    before = browser.evaluate("place().x")
    browser.key("Enter")
    browser.until(f"place().x > 1.5 * {before}")
    browser.tab_to(".openseadragon-canvas")
    assert browser.evaluate(focus) == "solid"
    browser.until(f"{ANNOUNCED}.includes('stroma')")
    box = browser.evaluate("data.outlines[1].rings[0]")
    # The view glides to its place: wait until where it is (true) is where it goes (false).
    centres = "viewer.viewport.getCenter(true).distanceTo(viewer.viewport.getCenter(false))"
    browser.until(f"{centres} < 1e-3")
    centre = browser.evaluate("positionOf(stage.clientWidth / 2, stage.clientHeight / 2)")
    for axis in range(2):
        places = [point[axis] for point in box]
        assert min(places) < centre[axis] < max(places)
    browser.key("0")
    browser.until(f"Math.abs(place().x - {before}) < 1e-6")
    middle = browser.evaluate("positionOf(stage.clientWidth / 2, 0)[0]")
    browser.key("ArrowRight", 2)
    browser.until(f"positionOf(stage.clientWidth / 2, 0)[0] > {middle}")
    browser.key("r")
    browser.key("f")
    assert browser.evaluate("[viewer.viewport.getRotation(), viewer.viewport.getFlip()]") == [0, False]

    browser.tab_to("#label-1")
    browser.key(" ")
    assert browser.evaluate("document.getElementById('label-1').checked") is False
    browser.tab_to("#probability-1")
    browser.key(" ")
    assert browser.evaluate("layers.find((layer) => layer.box.id === 'probability-1').box.checked") is True
    browser.tab_to("a[href='../../index.html']", shift=True)
    browser.key("Enter")
    browser.until("document.querySelector('table.slides') !== null")


def test_every_control_has_a_name(browser: Browser, base: str) -> None:
    for path in ("index.html", "slides/b/index.html", "slides/lost/index.html"):
        browser.open(base + path)
        roles = {"button", "checkbox", "slider", "link", "combobox", "searchbox", "application", "table", "image"}
        found = [(role, name) for role, name in browser.names() if role in roles]
        assert len(found) > 5
        assert not [role for role, name in found if not name and role != "table"], found


@pytest.mark.parametrize(
    "path", ["index.html", "slides/b/index.html", "slides/lost/index.html", "slides/broken/index.html"]
)
def test_pages_fit_narrow_windows(path: str, browser: Browser, base: str) -> None:
    browser.resize(400, 800)
    browser.open(base + path)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    browser.resize(1280, 900)


def test_markup_in_a_name_is_text(browser: Browser, base: str) -> None:
    browser.open(f"{base}index.html")
    assert browser.evaluate("document.querySelectorAll('img:not(.thumbnail)').length") == 0
    open_slide(browser, base, EVIL_KEY)
    assert browser.evaluate("document.querySelector('h1').textContent") == EVIL


def test_layers_of_a_slide_without_tiles(browser: Browser, base: str) -> None:
    open_slide(browser, base, "glass")
    assert pixel(browser, 100, 100) == [0, 0, 0, 0]
    browser.mouse("mouseMoved", *to_page(browser, 100, 100))
    assert browser.evaluate("chosen") is None
