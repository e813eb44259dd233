"""Draws the pictures of README.md and docs/ into docs/images: `python docs/figures.py RUNS`.

RUNS is the folder `runs` that these commands leave, started in the root of a checkout with the data linked into it:

    python -m histojax.main --config configs/ldcsf_liver.py:smoke --workdir runs/ldcsf \\
        --config.data.root=wsss4luad_part --config.data.mpp=1.0 \\
        --config.data.split.kfolds=5 --config.data.split.fold=0
    histojax slide runs/ldcsf slides/C3L-00601-26_stitched_pyramid.tif --mpp 2 --output runs/slide
    python -m histojax.main --config configs/dala_resnet50_breakhis.py --workdir runs/breakhis \\
        --config.data.root=BreaKHis_200X_224 --config.data.magnification=200X --config.data.image_size=96 \\
        --config.train.batch_size=16 --config.train.epochs=10
    histojax report runs/breakhis --output runs/report
    histojax explain runs/breakhis IMAGES --output runs/explained --method grad_cam

The pages of the viewer are those of `histojax view runs/slide` and `histojax view runs/breakhis`.
IMAGES are the first images of the first benign and the first malignant test patient (`_EXPLAIN` below). The leak meter
comes from benchmarks/results. Pictures of pages need Chromium; where it is not installed, they stay as they are.

Beside each picture lies a JSON file of the same name: commands, data, protocol, split hash, machine, versions, commit.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from histojax import __version__
from histojax.core.files import atomic_write, read_json, write_json
from histojax.evaluation.report import plots, section_provenance, sources
from histojax.evaluation.view import static
from histojax.inference import galleries
from histojax.slides import labels, tile_table
from histojax.slides.readers.reader import open_slide
from histojax.slides.view.cohort_site import CohortSite

DOCS = pathlib.Path(__file__).parent
IMAGES = DOCS / "images"
LEAK_METER = DOCS.parent / "benchmarks" / "results" / "leak_meter.json"
_CARD = 640  # CSS pixels: width of a plot; half of it stays legible
_PADDING = 0.02  # of a card's width
_WEBP_QUALITY = 80
_SLIDE_MPP = 2.0  # of the slide below
_TUMOR_TO_STROMA = LinearSegmentedColormap.from_list("tumor to stroma", ["#d55e00", "#f2f2f2", "#0072b2"])
_BREAKHIS = "BreakHis: Spanhol, Oliveira, Petitjean and Heutte, IEEE TBME 63(7), 2016; CC BY 4.0"
_RESIZED = "545 BreakHis images at 200X of 32 slides, each resized from 700×460 to 224×224"
_CPTAC = "C3L-00601-26, Clinical Proteomic Tumor Analysis Consortium (CPTAC), The Cancer Imaging Archive; CC BY 3.0"
_SLIDE = "histojax slide runs/ldcsf slides/C3L-00601-26_stitched_pyramid.tif --mpp 2 --output runs/slide"
_REPORT = "histojax report runs/breakhis --output runs/report"
_EXPLAIN = (
    "histojax explain runs/breakhis 'BreaKHis_200X_224/**/*-29315EF-200-001.png'"
    " 'BreaKHis_200X_224/**/*-5695-200-001.png' --output runs/explained --method grad_cam"
)

Origin = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the documentation.

    Attributes:
      draw: writes the picture to a path, from the folder of runs.
      origin: describes the runs behind it, for the JSON file.
    """

    draw: Callable[[pathlib.Path, pathlib.Path], None]
    origin: Callable[[pathlib.Path], Origin]


def main() -> None:
    """Draw every picture, or those of `--only`, and write the JSON files beside them."""
    parser = argparse.ArgumentParser(description="Draw the pictures of README.md and docs/.")
    parser.add_argument("runs", type=pathlib.Path, help="folder with the finished runs")
    parser.add_argument("--only", nargs="+", choices=sorted(PICTURES), help="pictures to draw (default: all)")
    args = parser.parse_args()
    for name, picture in PICTURES.items():
        if args.only and name not in args.only:
            continue
        if name in _PAGES and not _chromium():
            print(f"skipped {name}: Chromium is not installed")
            continue
        path = IMAGES / name
        with atomic_write(path) as temporary:
            picture.draw(args.runs, temporary)
        write_json(path.with_suffix(".json"), {"picture": name, **picture.origin(args.runs)})
        print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KB)")


# --- Origins ------------------------------------------------------------------------------------------------


def _of_run(folder: pathlib.Path, data: str, attribution: str, *later_commands: str) -> Origin:
    """Describe a run and the commands that used it."""
    source = sources.read(folder)
    facts, session = section_provenance.facts(source), source.run["sessions"][-1]
    return {
        "commands": [_typed(session["command"]), *later_commands],
        "data": data,
        "attribution": attribution,
        "protocol": facts["protocol"],
        "split_hash": facts["split_hash"],
        "machine": f"{session['machine']['cpu_count']} CPU cores, busy with other work",
        "versions": {name: facts["versions"][name] for name in ("python", "jax", "flax")},
        "commit": facts["commit"],
    }


def _typed(argv: Sequence[str]) -> str:
    """Return the command that a run recorded, as it is typed in the root of the repository."""
    program = "python -m histojax.main" if argv[0].endswith("main.py") else "histojax"
    return shlex.join([*shlex.split(program), *argv[1:]])


def _of_breakhis(*later_commands: str) -> Callable[[pathlib.Path], Origin]:
    return lambda runs: _of_run(runs / "breakhis", _RESIZED, _BREAKHIS, *later_commands)


def _of_slide(runs: pathlib.Path, *later_commands: str) -> Origin:
    data = (
        "model: LDCSF (small), trained on 19 images of lung adenocarcinoma and validated on 7 (a part of WSSS4LUAD's "
        "validation images, none is shown); slide: a CPTAC section whose file states neither organ nor µm/px, so that "
        "2 µm/px is an assumption"
    )
    return _of_run(runs / "ldcsf", data, _CPTAC, _SLIDE, *later_commands)


def _of_leak_meter(_: pathlib.Path) -> Origin:
    content = json.loads(LEAK_METER.read_text())
    facts, rows = content["provenance"], content["rows"].values()
    hashes = {row["protocol"]: row["split_hashes"] for row in rows}
    origin = {"commands": [facts["command"]], "attribution": _BREAKHIS, "split_hash": hashes}
    return origin | {key: facts[key] for key in ("data", "protocol", "machine", "commit")}


# --- The slide and its map ----------------------------------------------------------------------------------


def _draw_slide_and_map(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Draw the H&E section beside its tiles as the stroma percentage counts them, with that percentage."""
    row, folder = _slide(runs)
    with open_slide(runs.parent / row["slide"], row["mpp"]) as slide:
        thumbnail = slide.thumbnail(2048)
        scale = thumbnail.shape[1] / slide.width
    measured = read_json(folder / "tsr.json") or {}
    table = tile_table.read(folder / "tiles.parquet")
    fractions = _stroma_fractions(table, measured["settings"]["thresholds"])
    painted, box = _paint_tiles(thumbnail, table, fractions, scale)
    tissue = float(np.median(thumbnail[box]))  # its grey, below the colour bar
    with matplotlib.rc_context({"font.family": ["DejaVu Sans"]}):
        figure = Figure(figsize=(4.9, 3.3), dpi=200)
        FigureCanvasAgg(figure)
        for left, title, pixels in (
            (0.02, "H&E section", thumbnail),
            (0.51, "Tiles as the model counts them", painted),
        ):
            axes = figure.add_axes((left, 0.2, 0.47, 0.72))
            axes.imshow(pixels[box])
            axes.axis("off")
            axes.set_title(title, fontsize=10)
        bar = figure.add_axes((0.38, 0.125, 0.24, 0.045))
        bar.imshow(_tinted(tissue, np.linspace(0, 1, 256)[None]).astype(np.uint8), aspect="auto")
        bar.axis("off")
        figure.text(0.36, 0.147, "all tumor", ha="right", va="center", fontsize=10)
        figure.text(0.64, 0.147, "all stroma", va="center", fontsize=10)
        value, low, high = (
            measured["areas"]["whole tissue"]["stroma_percentage"][key] for key in ("value", "low", "high")
        )
        text = f"Stroma: {value:.1f} % [{low:.1f}, {high:.1f}] of tumor and stroma"
        figure.text(0.5, 0.035, text, ha="center", fontsize=11, fontweight="bold")
        _write_webp(_rendered(figure), path)


def _slide(runs: pathlib.Path) -> tuple[Mapping[str, Any], pathlib.Path]:
    """Return the row of slides.csv, and the folder of the only slide."""
    (row,) = pd.read_csv(runs / "slide" / "slides.csv").to_dict("records")
    return row, runs / "slide" / row["name"]


def _stroma_fractions(table: pd.DataFrame, thresholds: Mapping[str, float]) -> np.ndarray:
    """Return the part of each tile that counts as stroma, f64 [n]; the rest is tumor, and NaN is neither.

    A tile with both labels is divided by their probabilities, the default of `histojax slide`.
    """
    names, carried = labels.label_names(table), labels.carried_labels(table, thresholds)
    counted = [carried[:, names.index(name)] * table[labels.PREFIX + name].to_numpy() for name in ("tumor", "stroma")]
    with np.errstate(invalid="ignore"):
        return np.asarray(counted[1] / (counted[0] + counted[1]))


def _paint_tiles(
    thumbnail: np.ndarray, table: pd.DataFrame, fractions: np.ndarray, scale: float
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Paint tiles over the grey tissue; tiles of neither tumor nor stroma stay grey.

    Args:
      thumbnail: the slide, u8 [h, w, 3].
      table: its tiles.
      fractions: the part of stroma in each tile.
      scale: pixels of the thumbnail per level-0 pixel.

    Returns:
      The picture, u8 [h, w, 3], and the rows and columns that hold tissue.
    """
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2).astype(np.float32)
    painted = grey.copy()
    corners = table[["minx", "miny", "width", "height"]].to_numpy() * scale
    corners[:, 2:] += corners[:, :2]
    corners = corners.round().astype(int)
    for (x0, y0, x1, y1), fraction in zip(corners, fractions, strict=True):
        if not np.isnan(fraction):
            painted[y0:y1, x0:x1] = _tinted(grey[y0:y1, x0:x1], fraction)
    margin = 20
    (x0, y0), (x1, y1) = corners[:, :2].min(0) - margin, corners[:, 2:].max(0) + margin
    return painted.round().astype(np.uint8), (slice(max(y0, 0), y1), slice(max(x0, 0), x1))


def _tinted(grey: Any, fractions: Any) -> np.ndarray:
    """Return grey tissue (0 … 255) under the colour of a part of stroma: f64 [..., 3]."""
    return 0.35 * grey + 0.65 * 255 * np.asarray(_TUMOR_TO_STROMA(fractions))[..., :3]


# --- Plots --------------------------------------------------------------------------------------------------


def _draw_leak_meter(_: pathlib.Path, path: pathlib.Path) -> None:
    """Draw the accuracy of one model under several protocols as bars, with intervals over patients."""
    rows = list(json.loads(LEAK_METER.read_text())["rows"].values())
    with matplotlib.rc_context(plots.STYLE | {"font.size": 10.0}):
        figure = Figure(figsize=(3.6, 3.3), layout="constrained")
        axes = figure.subplots()
        for i, row in enumerate(rows):
            _draw_bar(axes, i, row)
        axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.65, -0.75), yticks=[])
        axes.set_xlabel("accuracy (white: always the same answer)")
        axes.set_title("One model, four ways to split its images", fontsize=10.5)
        axes.spines["left"].set_visible(False)
        path.write_bytes(_card(plots.svg(figure)))


def _draw_bar(axes: Axes, y: int, row: Mapping[str, Any]) -> None:
    accuracy, low, high = (row["figures"]["accuracy"]["pooled"][key] for key in ("value", "low", "high"))
    protocol = row["protocol"]
    colour = plots.COLOURS[1 if protocol.startswith("image") else 0]
    axes.barh(y, accuracy, 0.34, color=colour, alpha=0.75)
    axes.plot([low, high], [y, y], color="black", linewidth=1.6)
    axes.plot([low, low, None, high, high], [y - 0.1, y + 0.1, None, y - 0.1, y + 0.1], color="black", linewidth=1.6)
    axes.plot(
        [row["majority_baseline"]["accuracy"]] * 2,
        [y - 0.17, y + 0.17],
        color="white",
        linewidth=2.2,
        linestyle=(0, (2, 1)),
    )
    axes.text(0, y - 0.25, f"{protocol}: {accuracy:.3f} [{low:.3f}, {high:.3f}]", va="bottom")


def _draw_training(index: int) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Return a function that draws the losses (0) or the other metrics (1), as the report does."""

    def draw(runs: pathlib.Path, path: pathlib.Path) -> None:
        path.write_bytes(_card(plots.training_svgs(_reported(runs)["training"])[index]))

    return draw


def _draw_reliability(index: int) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Return a function that draws reliability as predicted (0) or after scaling (1), as the report does."""

    def draw(runs: pathlib.Path, path: pathlib.Path) -> None:
        entry = _reported(runs)["calibration"][0]
        path.write_bytes(_card(plots.reliability_svgs(entry)[index]))

    return draw


def _draw_confusion_matrix(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Draw the confusion matrix of the test images, with counts and percentages of each true class."""
    source = _reported(runs)
    counts = np.array(source["levels"]["image"]["confusion_matrix"])
    fractions = counts / counts.sum(1, keepdims=True)
    with matplotlib.rc_context(plots.STYLE | {"font.size": 11.0}):
        figure = Figure(figsize=(4.1, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.pcolormesh(fractions, cmap="Blues", vmin=0, vmax=1.2, edgecolors="white", linewidth=2)
        axes.set(aspect="equal", ylim=(len(counts), 0))
        for (row, column), count in np.ndenumerate(counts):
            text = f"{count}\n{100 * fractions[row, column]:.1f} %"
            ink = "white" if fractions[row, column] > 0.7 else "black"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=13)
        ticks = np.arange(len(counts)) + 0.5
        axes.set_xticks(ticks, [f"predicted\n{name}" for name in source["classes"]])
        axes.set_yticks(ticks, [f"truly\n{name}" for name in source["classes"]])
        axes.tick_params(length=0)
        block = source["splits"][source["split"]]
        axes.set_title(f"{block['n_images']} test images of {block['n_patients']} patients", fontsize=11)
        path.write_bytes(_card(plots.svg(figure)))


def _reported(runs: pathlib.Path) -> Mapping[str, Any]:
    """Return what the report states of its only source."""
    (source,) = (read_json(runs / "report" / "report.json") or {})["sources"]
    return source


def _card(svg: bytes) -> bytes:
    """Put a plot on a white card with round corners, so that it can be read on a dark page."""
    text = svg.decode()
    opening = re.search(r"<svg[^>]*>", text, re.DOTALL)
    assert opening is not None
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening[0])
    assert view is not None
    width, height = map(float, view.groups())
    pad = width * _PADDING
    box = f"{-pad:.1f} {-pad:.1f} {width + 2 * pad:.1f} {height + 2 * pad:.1f}"
    size = f'width="{_CARD}" height="{_CARD * (height + 2 * pad) / (width + 2 * pad):.0f}"'
    new = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size} viewBox="{box}">'
    x, y, w, h = box.split()
    card = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{pad:.1f}" fill="#ffffff"/>'
    return f"{new}\n{card}{text[opening.end() :]}".encode()


# --- Pixels -------------------------------------------------------------------------------------------------


def _draw_grad_cam(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Shrink the contact sheet that `histojax explain` wrote."""
    _shrink(runs / "explained" / "contact_sheet.png", path, 900)


def _draw_overlay(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Shrink the overlay that `histojax slide` wrote."""
    _shrink(_slide(runs)[1] / "overlay.png", path, 1000)


def _draw_report_page(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Picture the first screen of the report page."""
    _draw_page(runs / "report" / "report.html", path, 760, 660)


def _draw_view_slide(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Picture the viewer's page of the slide."""
    site = CohortSite(runs / "slide", runs.parent / "slides", _SLIDE_MPP)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(site):
        pages = pathlib.Path(folder) / "pages"
        static.write(site, pages, __version__)
        _draw_page(pages / "slides" / site.entries[0].key / "index.html", path, 1200, 840)


def _draw_view_images(runs: pathlib.Path, path: pathlib.Path) -> None:
    """Picture the viewer's gallery of the run on BreakHis."""
    images = galleries.of_predictions(runs / "breakhis", [str(runs.parent / "BreaKHis_200X_224")])
    with tempfile.TemporaryDirectory() as folder, images as gallery:
        pages = pathlib.Path(folder) / "pages"
        static.write(gallery, pages, __version__)
        _draw_page(pages / "index.html", path, 1200, 840)


def _draw_page(page: pathlib.Path, path: pathlib.Path, width: int, height: int) -> None:
    """Picture the first screen of a page in Chromium; its size is in CSS pixels."""
    with tempfile.TemporaryDirectory() as folder:
        shot = pathlib.Path(folder) / "page.png"
        command = [_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={width},{height}", "--force-device-scale-factor=1.5", "--virtual-time-budget=60000"]
        subprocess.run([*command, f"--screenshot={shot}", page.resolve().as_uri()], check=True, capture_output=True)
        _shrink(shot, path, 1140)


def _chromium() -> str:
    """Return the path of Chromium, empty if it is not installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


def _shrink(source: pathlib.Path, path: pathlib.Path, width: int) -> None:
    """Write a picture file as WebP, at most `width` pixels wide."""
    picture = Image.open(source).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    _write_webp(np.asarray(picture), path)


def _write_webp(pixels: np.ndarray, path: pathlib.Path) -> None:
    Image.fromarray(pixels).save(path, "WEBP", quality=_WEBP_QUALITY, method=6)


def _rendered(figure: Figure) -> np.ndarray:
    """Draw a figure: u8 [h, w, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


PICTURES = {
    "slide_and_map.webp": Picture(_draw_slide_and_map, _of_slide),
    "leak_meter.svg": Picture(_draw_leak_meter, _of_leak_meter),
    "training_loss.svg": Picture(_draw_training(0), _of_breakhis(_REPORT)),
    "training_metrics.svg": Picture(_draw_training(1), _of_breakhis(_REPORT)),
    "confusion_matrix.svg": Picture(_draw_confusion_matrix, _of_breakhis(_REPORT)),
    "reliability.svg": Picture(_draw_reliability(0), _of_breakhis(_REPORT)),
    "reliability_scaled.svg": Picture(_draw_reliability(1), _of_breakhis(_REPORT)),
    "grad_cam.webp": Picture(_draw_grad_cam, _of_breakhis(_EXPLAIN)),
    "slide_overlay.webp": Picture(_draw_overlay, _of_slide),
    "report_page.webp": Picture(_draw_report_page, _of_breakhis(_REPORT)),
    "view_slide.webp": Picture(_draw_view_slide, lambda runs: _of_slide(runs, "histojax view runs/slide")),
    "view_images.webp": Picture(_draw_view_images, _of_breakhis("histojax view runs/breakhis")),
}
_PAGES = ("report_page.webp", "view_slide.webp", "view_images.webp")  # need Chromium

if __name__ == "__main__":
    main()
