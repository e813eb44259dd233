"""`histojax audit`: exit codes, what is written, and names that would do harm."""

import csv
import json
import pathlib
import re
import shutil

import cv2
import numpy as np
import pytest

from histojax.cli import audit
from histojax.evaluation.report import audit_html


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[object, str]:
    """Exit code (or message) and what the terminal shows."""
    try:
        audit.main([str(word) for word in words])
        code: object = 0
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


@pytest.fixture
def images(breakhis_part: pathlib.Path, tmp_path: pathlib.Path) -> list[pathlib.Path]:
    (tmp_path / "root").mkdir()
    paths = sorted(breakhis_part.rglob("SOB_M_DC-14-13412-100-*.png"))[:3]
    return [pathlib.Path(shutil.copy(path, tmp_path / "root" / path.name)) for path in paths]


def test_exit_codes_and_files(
    images: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    code, shown = _run(capsys, root, "--output", out)
    assert code == 0
    assert "no leak was found; no split was given" in shown
    assert "3 of 2081 published images" in shown

    shutil.copy(images[0], root / images[0].name.replace("_DC-", "_LC-"))
    (root / "cut.png").write_bytes(images[0].read_bytes()[:5000])
    rows = [f"{path.stem},{'test' if '_LC-' in path.name else 'train'}\n" for path in sorted(root.glob("SOB*.png"))]
    (tmp_path / "split.csv").write_text("image_id,split\n" + "".join(rows))
    code, shown = _run(capsys, root, "--split", tmp_path / "split.csv", "--output", out)
    assert code == 1
    assert "LEAK: split.csv: one picture on several sides: 1 sets of equal" in shown
    assert (
        "SOB_M_DC-14-13412-100-001.png = SOB_M_LC-14-13412-100-001.png (equal; labels malignant/DC, malignant/LC"
        in shown
    )
    assert "cut.png: truncated PNG: 5000 bytes" in shown

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
    assert not re.search(r"<script|https?:|src=\"(?!data:)|url\(", page)  # one file, nothing from elsewhere
    assert {path.name for path in out.iterdir()} == {"audit.html", "audit.json", "images.csv"}


def test_strict_cases_and_against(
    breakhis_part: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, slide in (("train", "22549AB"), ("test", "22549CD")):
        (tmp_path / "root" / side).mkdir(parents=True)
        for path in sorted(breakhis_part.rglob(f"SOB_B_A-14-{slide}-100-*.png"))[:2]:
            shutil.copy(path, tmp_path / "root" / side)
    out = tmp_path / "out"
    code, shown = _run(capsys, tmp_path / "root", "--output", out)
    assert code == 0
    assert "warning: as given: cases on several sides by way of siblings" in shown
    assert _run(capsys, tmp_path / "root", "--output", out, "--strict_cases")[0] == 1
    code, shown = _run(capsys, tmp_path / "root" / "train", "--against", tmp_path / "root" / "test", "--output", out)
    assert code == 0
    archive = next(breakhis_part.rglob("SOB_B_A_14-22549AB"))
    code, shown = _run(capsys, tmp_path / "root" / "train", "--against", archive, "--output", out)
    assert code == 1
    assert "LEAK: between datasets: one picture on several sides: 2 sets of equal" in shown


def test_names_do_no_harm(
    images: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    evil = ["<script>alert(1)<", "a\nLEAK: forged", "\x1b[31mred", "\u202egnp.exe", 'x" onerror="y', "{{ 7*7 }}", "é"]
    folder = root / "<b>class"
    folder.mkdir()
    for name in evil:
        shutil.copy(images[0], folder / f"{name}.png")
    (root / "broken\n<i>.png").write_bytes(b"\xff")
    with open(b"%b/\xff\xfe.png" % bytes(root), "wb") as file:
        file.write(images[1].read_bytes())
    code, shown = _run(capsys, root, "--output", out)
    assert code == 0
    page = (out / "audit.html").read_text()
    for text in (page, shown):
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


def test_many_duplicates_are_capped_on_the_page(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for i in range(70):
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for copy in "ab":
            cv2.imwrite(str(tmp_path / f"{i:02d}{copy}.png"), image)
    code, shown = _run(capsys, tmp_path, "--output", tmp_path / "out")
    assert code == 0
    assert "… and 50 more; see audit.json" in shown
    page = (tmp_path / "out" / "audit.html").read_text()
    assert page.count("data:image/jpeg") == 2 * audit_html.SHOWN
    assert "the first 60 are shown" in page
    assert len(json.loads((tmp_path / "out" / "audit.json").read_text())["duplicates"]) == 70


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere"], "no such folder or list"),
        (["{root}", "--split", "none.csv"], "none.csv"),
        (["{root}", "--folds", "{root}"], "dsfold1.txt: no such file"),
        (["{root}", "--max_distance", "200"], "max_distance=200 is not in 0 … 63"),
        (["{root}", "--output", "{root}/a.png"], "a file, and --output is a folder"),
    ],
)
def test_mistakes_are_told_in_words(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    code, _ = _run(capsys, *(word.format(root=tmp_path) for word in words))
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert complaint in code
