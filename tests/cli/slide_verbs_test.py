"""`histojax slide train-tiles`, `slide agreement` and `slide outcome`, from the command line."""

import csv
import json
import pathlib
import sys

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from histojax.cli import slide_ratio
from histojax.cli.main import parse
from histojax.core.errors import RunError
from tests.conftest import ROOT
from tests.helpers import survival_tables
from tests.helpers.command import histojax
from tests.helpers.programs import run

SLIDE = [sys.executable, "-m", "histojax", "slide"]


def test_train_tiles_cuts_tiles(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )
    feature = {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(shapely.box(0, 0, 100, 100)),
        "properties": {"classification": {"name": "Tumor"}},
    }
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    (tmp_path / "list.csv").write_text("slide;mpp;patient_id\na.tif;0.5;P1\n")
    output = tmp_path / "tiles"
    flags = ["--labels=tumor", "--size=50", "--tile_mpp=1", "--min_tissue=0"]
    done = run([*SLIDE, "train-tiles", str(tmp_path / "list.csv"), f"--output={output}", *flags])
    assert done.returncode == 0, done.stderr
    assert "a: 1 tiles (tumor 1)" in done.stdout
    with open(output / "tiles.csv", newline="") as file:
        assert [row["patient_id"] for row in csv.DictReader(file)] == ["P1"]


def test_agreement_reports_a_run_without_a_checkpoint(tmp_path: pathlib.Path) -> None:
    done = run([*SLIDE, "agreement", str(tmp_path / "none"), f"--output={tmp_path / 'out'}"])
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "ldcsf: the run had synthetic images; name the folder of images and masks with --data_root=PATH"),
        (["--data_root=/absent"], "error: /absent: no such folder of images; name"),
    ],
)
def test_agreement_names_the_flag_for_images_that_are_not_there(
    more: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    run_of_0_1 = ROOT / "tests" / "fixtures" / "runs_of_0_1" / "ldcsf"
    done = histojax("slide", "agreement", run_of_0_1, f"--output={tmp_path / 'out'}", *more)
    assert done.returncode == 1
    assert message in done.stderr


def test_outcome_joins_and_writes(tmp_path: pathlib.Path) -> None:
    table = pd.read_csv(survival_tables.FOLDER / "table.csv")
    slides = pd.DataFrame({"name": table["patient_id"] + "_a", "stroma_percentage": table["stroma"]})
    slides.to_csv(tmp_path / "slides.csv", index=False)
    table.rename(columns={"time": "os_months", "event": "dead"}).to_csv(tmp_path / "clinical.csv", index=False)
    words = ["slide", "outcome", tmp_path / "slides.csv", tmp_path / "clinical.csv", f"--output={tmp_path / 'out'}"]
    words += ["--time_unit=months", "--time_column=os_months", "--patient_pattern=^(?P<patient>P\\d+)_"]
    done = histojax(*words)
    assert done.returncode == 1
    assert "clinical.csv: no column event; name it with --event_column" in done.stderr
    assert not (tmp_path / "out").exists()
    words += ["--event_column=dead", "--adjust=age,stage", "--cutoff=hcc,60", "--resamples=100", "--seed=1"]
    done = histojax(*words)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert list(result["figures"]["cutoffs"]) == ["hcc", "60"]
    assert (result["settings"]["resamples"], result["settings"]["seed"]) == (100, 1)
    expected = survival_tables.EXPECTED["cox"]["adjusted"]["beta"][0]
    assert result["figures"]["per_sd"]["adjusted"]["beta"] == pytest.approx(expected, abs=1e-6)
    assert done.stdout.startswith("Research use only. An association in one cohort, not a finding on one patient")


def test_outcome_needs_no_extra_and_no_jax() -> None:
    program = "import sys\nimport histojax.slides.outcome.write, histojax.slides.outcome.text\n"
    program += "print({'jax', 'scipy', 'shapely', 'openslide', 'h5py', 'tifffile'} & sys.modules.keys())"
    assert run([sys.executable, "-c", program]).stdout == "set()\n"


def test_flags_of_the_ratio_are_refused_where_there_is_none() -> None:
    words = ["slide", "run", "slide.tif", "--output=out"]
    assert slide_ratio.ratio_spec(parse(words), ("benign", "malignant"), None) is None
    with pytest.raises(RunError, match=r"--policy: has an effect only with a label for stroma \(--stroma\)"):
        slide_ratio.ratio_spec(parse([*words, "--policy=half"]), ("benign", "malignant"), None)
    spec = slide_ratio.ratio_spec(parse([*words, "--block_um=500", "--stroma=benign"]), ("benign", "malignant"), None)
    assert spec is not None
    assert spec.block_um == 500
