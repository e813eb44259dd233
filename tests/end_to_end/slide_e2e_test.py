"""Whole slides as users run them: bad files, interrupted and sharded cohorts, regions, agreement, training tiles.

Commands run in the test's process, except those that are killed and one that resumes.
"""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import geojson
import jax
import numpy as np
import pandas as pd
import pytest
import shapely.geometry

from histojax.slides import tile_table
from histojax.slides.labels import PREFIX
from tests.helpers import planted
from tests.helpers.command import Finished, histojax
from tests.helpers.programs import small_ldcsf_run
from tests.helpers.warm_start import run, run_until

pytestmark = pytest.mark.slow
SMALL = ["--min_tumor_mm2=0", "--min_tissue_mm2=0.01", "--block_um=80", "--hot_spot_um=120", "--resamples=200"]
STROMA = {"a": 0.25, "b": 0.75, "c": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model that separates the planted tumor and stroma, trained by the program on images with masks."""
    folder = tmp_path_factory.mktemp("slide-e2e")
    root = planted.write_masked_images(folder / "masked")
    fields = {"data.root": root, "data.tiles.labels": "('tumor','stroma')", "data.tiles.size": 48}
    fields |= {"data.tiles.stride": 24, "data.mpp": planted.MPP, "train.epochs": 8, "data.augment.colour_jitter": 0.0}
    return small_ldcsf_run(folder, **fields)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed, (name, fraction) in enumerate(STROMA.items()):
        planted.write_slide(folder / f"{name}.tif", fraction, seed)
    return folder


def arguments(trained: pathlib.Path, slides: object, output: pathlib.Path, *more: str) -> list[str]:
    return ["slide", str(trained), str(slides), "--output", str(output), *SMALL, *more]


def run_slides(trained: pathlib.Path, slides: object, output: pathlib.Path, *more: str) -> Finished:
    return histojax(*arguments(trained, slides, output, *more))


@pytest.fixture(scope="module")
def finished(trained: pathlib.Path, slides: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The results of a cohort that was never interrupted."""
    output = tmp_path_factory.mktemp("cohort") / "out"
    done = run_slides(trained, slides, output)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 slides" in done.stdout
    return output


def same_results(one: pathlib.Path, other: pathlib.Path) -> None:
    for name in STROMA:
        files = sorted(path.name for path in (one / name).iterdir())
        assert files == sorted(path.name for path in (other / name).iterdir())
        for file in set(files) - {"slide.json"}:
            assert (one / name / file).read_bytes() == (other / name / file).read_bytes(), (name, file)
    tables = [pd.read_csv(folder / "slides.csv").drop(columns="seconds") for folder in (one, other)]
    pd.testing.assert_frame_equal(*tables)


def test_the_planted_stroma_percentage_is_measured(finished: pathlib.Path) -> None:
    table = pd.read_csv(finished / "slides.csv").set_index("name")
    assert table["status"].tolist() == ["done"] * 3
    for name, fraction in STROMA.items():
        row = table.loc[name]
        assert row["stroma_percentage"] == pytest.approx(100 * fraction, abs=6)
        assert row["stroma_percentage_low"] <= row["stroma_percentage"] <= row["stroma_percentage_high"]
        assert row["tissue_mm2"] == pytest.approx(0.48 * 0.36, rel=0.05)
        found = json.loads((finished / name / "tsr.json").read_text())
        assert found["areas"]["whole tissue"]["stroma_percentage"]["value"] == row["stroma_percentage"]
        # The model is validated on two source images, which say too little about other slides.
        corrected = found["areas"]["whole tissue"]["corrected"]
        assert re.search(r"needs at least 4 validation .*; the model has [12]$", corrected["reason"])
        assert corrected["labels"]["tumor"]["sensitivity"]["sources"] == 2
    assert table.loc["a", "stroma_class"] == "stroma-low"
    assert table.loc["b", "stroma_class"] == "stroma-high"


def test_the_folder_of_a_slide_holds_all_results(finished: pathlib.Path) -> None:
    names = {path.name for path in (finished / "a").iterdir()}
    assert names == {
        "slide.json", "tsr.json", "tiles.csv", "tiles.parquet", "tiles.geojson", "heatmap_tumor.png",
        "heatmap_stroma.png", "heatmap.tif", "overlay.png", "slide.png", "tissue.png", "summary.html",
    }  # fmt: skip
    table = tile_table.read(finished / "a" / "tiles.parquet")
    assert list(table.columns[:4]) == ["minx", "miny", "width", "height"]
    features = geojson.loads((finished / "a" / "tiles.geojson").read_text())
    assert features.is_valid
    assert len(features["features"]) == len(table) > 100
    assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in features["features"])
    page = (finished / "a" / "summary.html").read_text()
    assert "Research use only" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_tile_has_the_models_prediction_for_its_pixels(
    trained: pathlib.Path, slides: pathlib.Path, finished: pathlib.Path
) -> None:
    from histojax.inference.predictor import Predictor
    from histojax.slides.readers.reader import open_slide

    table = tile_table.read(finished / "b" / "tiles.parquet")
    predictor = Predictor.load(trained)
    size = predictor.image_size
    with open_slide(slides / "b.tif") as slide:
        boxes = table[["minx", "miny", "width", "height"]].to_numpy().tolist()
        wanted = predictor.predict([slide.read(*box, size, size) for box in boxes])
    found = table[[PREFIX + name for name in predictor.classes]].to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.std() > 0.1


@pytest.mark.parametrize("moment", ["during the first slide", "between two slides"])
def test_a_killed_cohort_resumes_to_the_same_results(
    moment: str,
    trained: pathlib.Path,
    slides: pathlib.Path,
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The same number of devices as in the test's process, because a device's batch size may change the last bit.
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={jax.device_count()}")
    output = tmp_path / "out"
    words = arguments(trained, slides, output)
    program = [sys.executable, "-m", "histojax", *words]
    waits_for_first = moment == "between two slides"
    reached = (output / "a" / "tsr.json").is_file if waits_for_first else (output / ".a.partial").is_dir
    code, _ = run_until(program, reached, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (output / "c").exists()
    written = (output / "a" / "tsr.json").stat().st_mtime_ns if (output / "a").exists() else None
    done: Finished | subprocess.CompletedProcess[str] = histojax(*words) if written is None else run(program)
    assert done.returncode == 0, done.stderr
    if written is not None:
        assert "a: already finished" in done.stderr
        assert (output / "a" / "tsr.json").stat().st_mtime_ns == written
    same_results(finished, output)
    assert not list(output.glob(".*"))


def test_shards_divide_a_cohort(
    trained: pathlib.Path, slides: pathlib.Path, finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out"
    for i in range(2):
        done = run_slides(trained, slides, output, f"--shard={i}/2")
        assert done.returncode == 0, done.stderr
        assert f"{2 - i} of {2 - i} slides" in done.stdout
    same_results(finished, output)


def test_bad_slides_are_reported_and_skipped(
    trained: pathlib.Path, slides: pathlib.Path, finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copy(slides / "a.tif", tmp_path / "a.tif")
    content = (slides / "b.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 3])
    (tmp_path / "text.svs").write_text("no slide")
    planted.write_slide(tmp_path / "nompp.tif", 0.5, mpp=None)
    (tmp_path / "list.csv").write_text("slide,mpp\na.tif,\ncut.tif,\ntext.svs,\nnompp.tif,\nabsent.svs,\n")
    output = tmp_path / "out"
    done = run_slides(trained, tmp_path / "list.csv", output)
    assert done.returncode == 1
    assert "4 of 5 slides failed" in done.stderr
    assert "Traceback" not in done.stderr
    table = pd.read_csv(output / "slides.csv").set_index("name")
    assert table.loc["a", "status"] == "done"
    for name, reason in (("cut", "cut.tif"), ("text", "text.svs"), ("nompp", "--mpp"), ("absent", "absent.svs")):
        assert table.loc[name, "status"] == "failed"
        assert reason in table.loc[name, "reason"]
    for file in ("tsr.json", "tiles.parquet"):
        assert (output / "a" / file).read_bytes() == (finished / "a" / file).read_bytes()
    # A failed slide is tried again, and now succeeds with the given µm/px.
    done = run_slides(trained, tmp_path / "nompp.tif", output, f"--mpp={planted.MPP}")
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(output / "slides.csv").set_index("name").loc["nompp", "status"] == "done"


def test_a_region_of_interest_is_measured_and_other_settings_need_redo(
    trained: pathlib.Path, slides: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    box = shapely.geometry.box(110, 80, 612, 820)  # the left half of the tissue; its edges pass through no tile center
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "Feature", "geometry": box.__geo_interface__, "properties": {}}))
    output = tmp_path / "out"
    words = arguments(trained, slides / "a.tif", output, f"--roi={roi}", "--cutoff=hcc", "--overlap=0.5", "--gzip")
    done = histojax(*words)
    assert done.returncode == 0, done.stderr
    areas = json.loads((output / "a" / "tsr.json").read_text())["areas"]
    assert areas["region"]["stroma_percentage"]["value"] < 12  # from tiles that are half glass
    assert areas["whole tissue"]["stroma_percentage"]["value"] == pytest.approx(25, abs=6)
    assert areas["region"]["tissue_mm2"] == pytest.approx(areas["whole tissue"]["tissue_mm2"] / 2, rel=0.1)
    assert ">= 50 %" in areas["region"]["stroma_class"]["rule"]
    assert (output / "a" / "tiles.geojson.gz").is_file()
    done = histojax(*words, "--min_tissue=0.9")
    assert done.returncode == 1
    assert "min_tissue: saved 0.5, now 0.9" in done.stderr
    assert "--redo" in done.stderr
    done = histojax(*words, "--min_tissue=0.9", "--redo")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tumor=fat"], "the model has no label 'fat'"),
        (["--overlap=1"], "overlap"),
        (["--tile_um=-5"], "--tile_um=-5.0 is not a length above 0"),
        (["--shard=2/2"], "--shard=2/2 is not I/N"),
        (["--policy=third"], "'third' is not one of"),
        (["--batch_size=3"], "--batch_size: batch size=3 does not divide"),
    ],
)
def test_invalid_flags_are_reported_before_any_work(
    trained: pathlib.Path, slides: pathlib.Path, tmp_path: pathlib.Path, more: list[str], message: str
) -> None:
    done = run_slides(trained, slides, tmp_path / "out", *more)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_predicted_percentages_agree_with_the_masks(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = histojax("slide", "agreement", trained, "--output", tmp_path / "agreement")
    assert done.returncode == 0, done.stderr
    assert "ICC(2,1)" in done.stdout
    table = pd.read_csv(tmp_path / "agreement" / "agreement.csv")
    figures = json.loads((tmp_path / "agreement" / "agreement.json").read_text())["figures"]
    assert figures["n"] == len(table) > 2
    assert (table["predicted"] - table["reference"]).abs().mean() < 20
    done = histojax("slide", "agreement", trained, trained, "--output", tmp_path / "twice")
    assert done.returncode == 1
    assert "held out by more than one run" in done.stderr


def test_tiles_of_annotated_slides_train_a_model(slides: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name, fraction in STROMA.items():
        shutil.copy(slides / f"{name}.tif", tmp_path)
        boundary = 120 + 960 * (1 - fraction)
        features = [
            {"type": "Feature", "geometry": shapely.geometry.box(*box).__geo_interface__, "properties": properties}
            for box, properties in (
                ((120, 90, boundary, 810), {"objectType": "annotation", "classification": {"name": "Tumor"}}),
                ((boundary, 90, 1080, 810), {"objectType": "annotation", "classification": {"name": "Stroma"}}),
            )
        ]
        (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    flags = ["--labels=tumor,stroma", "--size=48", "--tile_mpp=1"]
    done = histojax("slide", "train-tiles", tmp_path, "--output", tmp_path / "tiles", *flags)
    assert done.returncode == 0, done.stderr
    assert "tiles in" in done.stdout
    fields = {"data.root": tmp_path / "tiles", "data.tiles.labels": "('tumor','stroma')", "train.epochs": 1}
    workdir = small_ldcsf_run(tmp_path / "trained", **fields)
    found = json.loads((workdir / "results.json").read_text())
    assert found["protocol"].startswith("slide-disjoint")
