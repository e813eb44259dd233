"""`histojax audit`: exit codes, files, and hostile file names."""

import csv
import json
import pathlib
import re
import shutil

import cv2
import numpy as np
import pytest

from histojax.evaluation.report import audit_html
from tests.helpers.command import histojax


@pytest.fixture
def images(breakhis_part: pathlib.Path, tmp_path: pathlib.Path) -> list[pathlib.Path]:
    (tmp_path / "root").mkdir()
    paths = sorted(breakhis_part.rglob("SOB_M_DC-14-13412-100-*.png"))[:3]
    return [pathlib.Path(shutil.copy(path, tmp_path / "root" / path.name)) for path in paths]


def test_exit_codes_and_files(images: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    done = histojax("audit", root, "--output", out)
    assert done.returncode == 0
    assert "no leak was found; no split was given" in done.stdout
    assert "3 of 2081 published images" in done.stdout

    shutil.copy(images[0], root / images[0].name.replace("_DC-", "_LC-"))
    (root / "cut.png").write_bytes(images[0].read_bytes()[:5000])
    rows = [f"{path.stem},{'test' if '_LC-' in path.name else 'train'}\n" for path in sorted(root.glob("SOB*.png"))]
    (tmp_path / "split.csv").write_text("image_id,split\n" + "".join(rows))
    done = histojax("audit", root, "--split", tmp_path / "split.csv", "--output", out)
    assert done.returncode == 1
    assert "LEAK: split.csv: the same picture on several sides: 1 sets of identical" in done.stdout
    assert (
        "SOB_M_DC-14-13412-100-001.png = SOB_M_LC-14-13412-100-001.png (equal; labels malignant/DC, malignant/LC"
        in done.stdout
    )
    assert "cut.png: truncated PNG: the end is missing after 5000 bytes" in done.stdout

    facts = json.loads((out / "audit.json").read_text())
    assert len(facts["leaks"]) == 2
    with open(out / "images.csv", newline="") as file:
        table = {row["path"]: row for row in csv.DictReader(file)}
    assert len(table) == 5
    assert table["cut.png"]["problem"].startswith("truncated PNG")
    copied, original = (table[f"SOB_M_{kind}-14-13412-100-001.png"] for kind in ("LC", "DC"))
    assert copied["pixel_hash"] == original["pixel_hash"]
    assert (copied["same_picture_as"], copied["side in split.csv"]) == (original["path"], "test")
    page = (out / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "Leaks found: metrics on this split are too optimistic" in page
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0"><table') > 2
    assert '<meta name="viewport" content="width=device-width' in page
    assert not re.search(r"<script|https?:|src=\"(?!data:)|url\(", page)  # one file, nothing from elsewhere
    assert {path.name for path in out.iterdir()} == {"audit.html", "audit.json", "images.csv"}


def test_strict_cases_and_against(breakhis_part: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for side, slide in (("train", "22549AB"), ("test", "22549CD")):
        (tmp_path / "root" / side).mkdir(parents=True)
        for path in sorted(breakhis_part.rglob(f"SOB_B_A-14-{slide}-100-*.png"))[:2]:
            shutil.copy(path, tmp_path / "root" / side)
    out = tmp_path / "out"
    done = histojax("audit", tmp_path / "root", "--output", out)
    assert done.returncode == 0
    assert "warning: as given: cases on several sides through sibling patients" in done.stdout
    assert histojax("audit", tmp_path / "root", "--output", out, "--strict_cases").returncode == 1
    done = histojax("audit", tmp_path / "root" / "train", "--against", tmp_path / "root" / "test", "--output", out)
    assert done.returncode == 0
    archive = next(breakhis_part.rglob("SOB_B_A_14-22549AB"))
    done = histojax("audit", tmp_path / "root" / "train", "--against", archive, "--output", out)
    assert done.returncode == 1
    assert "LEAK: between datasets: the same picture on several sides: 2 sets of identical" in done.stdout


def test_names_do_no_harm(images: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    evil = ["<script>alert(1)<", "a\nLEAK: forged", "\x1b[31mred", "\u202egnp.exe", 'x" onerror="y', "{{ 7*7 }}", "é"]
    folder = root / "<b>class"
    folder.mkdir()
    for name in evil:
        shutil.copy(images[0], folder / f"{name}.png")
    (root / "broken\n<i>.png").write_bytes(b"\xff")
    with open(b"%b/\xff\xfe.png" % bytes(root), "wb") as file:
        file.write(images[1].read_bytes())
    done = histojax("audit", root, "--output", out)
    assert done.returncode == 0
    page = (out / "audit.html").read_text()
    for text in (page, done.stdout):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\nLEAK: forged" not in text
        assert r"\x1b[31mred.png" in text
        assert r"\xff\xfe.png" in text
    assert not re.search(r"<script|<b>class|<i>|\" onerror|>49<", page)
    assert "&lt;script&gt;alert(1)&lt;.png" in page
    assert r"a\nLEAK: forged.png" in page
    assert "é.png" in page
    facts = json.loads((out / "audit.json").read_text())
    assert len(facts["duplicates"][0]["images"]) == 8
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3 + 7 + 2


def test_many_duplicates_are_capped_on_the_page(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(70):
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for copy in "ab":
            cv2.imwrite(str(tmp_path / f"{i:02d}{copy}.png"), image)
    done = histojax("audit", tmp_path, "--output", tmp_path / "out")
    assert done.returncode == 0
    assert "… and 50 more; see audit.json" in done.stdout
    page = (tmp_path / "out" / "audit.html").read_text()
    assert page.count("data:image/jpeg") == 2 * audit_html.SHOWN
    assert "the first 60 are shown" in page
    assert len(json.loads((tmp_path / "out" / "audit.json").read_text())["duplicates"]) == 70


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "no such folder or list"),
        (["{root}", "--split", "none.csv"], "none.csv"),
        (["{root}", "--folds", "{root}"], "dsfold1.txt: no such file"),
        (["{root}", "--max_distance", "200"], "max_distance=200 is not in 0 … 63"),
        (["{root}", "--output", "{root}/a.png"], "a.png is a file, and must be a folder"),
    ],
)
def test_user_errors_have_a_message(tmp_path: pathlib.Path, argv: list[str], message: str) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    done = histojax("audit", *(word.format(root=tmp_path) for word in argv))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
