"""`histojax view`: the right pages for each folder, Ctrl-C, and errors."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.helpers import viewed_cohort
from tests.helpers.command import histojax
from tests.inference.galleries_test import table_of, write_explanations


@pytest.fixture(scope="module")
def slides_out(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return viewed_cohort.write(tmp_path_factory.mktemp("viewed"))


def test_it_serves_until_ctrl_c(slides_out: pathlib.Path) -> None:
    words = [sys.executable, "-m", "histojax", "view", str(slides_out), "--no_browser"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program inherits that it is ignored
    try:
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", url)
            assert "Ctrl-C ends the viewer" in process.stdout.readline()
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert b"<h1>out</h1>" in answer.read()
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
            assert (process.returncode, error) == (130, "the viewer has ended\n")
        finally:
            process.kill()


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server end at once."""
    monkeypatch.setattr("socketserver.BaseServer.serve_forever", lambda _: None)


@pytest.mark.usefixtures("no_server")
def test_a_browser_is_opened_unless_told_otherwise(slides_out: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    done = histojax("view", slides_out)
    assert done.stdout.startswith(opened[0])
    assert histojax("view", slides_out, "--no_browser").returncode == 0
    assert len(opened) == 1


def test_a_folder_is_written(slides_out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pages = tmp_path / "pages"
    done = histojax("view", slides_out, "--static", pages, "--static_mpp=4")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"MB in {pages}; open {pages}/index\.html", done.stdout)
    names = {path.relative_to(pages).as_posix() for path in pages.rglob("*") if path.is_file()}
    assert {"index.html", "view.json", "assets/openseadragon.min.js", "slides/a/slide_files/8/0_0.jpg"} <= names
    done = histojax("view", slides_out, "--static", pages)
    assert done.returncode == 1
    assert "already exists" in done.stderr


def test_slides_too_large_for_a_folder_are_refused(slides_out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = histojax("view", slides_out, "--static", tmp_path / "pages", "--static_gb=0.0001")
    assert done.returncode == 1
    assert "more than --static_gb=0.0001: raise that, or take coarser slides than --static_mpp=1" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["table", "folder", "explanations"])
def test_images_are_shown(kind: str, tmp_path: pathlib.Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    if kind == "explanations":
        write_explanations(results)
    else:
        table_of(["a", "b"]).to_csv(results / "predictions.csv", index=False)
    path = results / "predictions.csv" if kind == "table" else results
    done = histojax("view", path, "--static", tmp_path / "pages")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pages" / "assets" / "gallery.js").is_file()
    assert (tmp_path / "pages" / "pictures" / "0.jpg").is_file() == (kind == "explanations")


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--static_mpp=2"], "--static_mpp: has an effect only with --static"),
        (["--static=x", "--port=8000"], "--port: has an effect only without --static"),
        (["--static=x", "--no_browser"], "--no_browser: has an effect only without --static"),
        (["--images=x"], "--images: has an effect only with a table of predictions"),
        (["--slides=/absent"], "--slides=/absent: no such folder"),
    ],
)
def test_flags_without_effect_are_refused(more: list[str], message: str, slides_out: pathlib.Path) -> None:
    done = histojax("view", slides_out, *more)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.usefixtures("no_server")
def test_other_folders_are_refused(slides_out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for path, message in (
        (slides_out / "a", f"is one slide of a cohort: give the folder above it, {slides_out}"),
        (tmp_path, "nothing that can be viewed"),
        (tmp_path / "none", "nothing that can be viewed"),
    ):
        done = histojax("view", path)
        assert done.returncode == 1
        assert message in done.stderr
    table_of(["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    done = histojax("view", tmp_path / "t.csv", "--slides", tmp_path)
    assert "--slides: has an effect only with slides" in done.stderr
    assert os.listdir(tmp_path) == ["t.csv"]


def test_a_port_out_of_range_is_refused() -> None:
    done = histojax("view", "x", "--port=70000")
    assert done.returncode == 2
    assert "argument --port: 70000 is not a port, 1 to 65535" in done.stderr


def test_slides_need_their_extra(slides_out: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: (name != "shapely" and find_spec(name, *rest)) or None
    )
    done = histojax("view", slides_out)
    assert done.returncode == 1
    assert done.stderr.endswith("histojax view of slides needs shapely; install with: pip install 'histojax[slides]'\n")
