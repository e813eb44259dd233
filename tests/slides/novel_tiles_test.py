"""A slide says how many of its tiles are unlike the training images, and warns if they are many."""

import json
import pathlib

import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.evaluation.novelty import COLUMNS
from histojax.slides import cohort, cohort_jobs, novel_tiles, tile_table
from tests.helpers import planted
from tests.helpers.colour_slide_model import SMALL, model
from tests.helpers.novelty_scorer import DarknessScorer

pytestmark = pytest.mark.usefixtures("coarse_pictures")


def test_a_slide_of_dark_tiles_is_unlike_the_training_images(tmp_path: pathlib.Path) -> None:
    stroma = {"most": 0.25, "none": 1.0}
    jobs = [cohort_jobs.Job(name, planted.write_slide(tmp_path / f"{name}.tif", part)) for name, part in stroma.items()]
    output = tmp_path / "out"
    assert cohort.run(jobs, model(novelty=DarknessScorer()), cohort.Settings(tsr=SMALL), output) == 0
    row = pd.read_csv(output / "slides.csv").set_index("name")
    assert 0.6 < (share := row.loc["most", "unlike_training"]) < 0.8
    assert row.loc["none", "unlike_training"] == 0
    assert row["warnings"].fillna("").str.contains("of the tiles are unlike the model's training images").tolist() == [
        True,
        False,
    ]
    assert f"{share:.0%} of the tiles" in (output / "most" / "summary.html").read_text()
    assert f"{share:.0%} of the tiles" in json.loads((output / "most" / "tsr.json").read_text())["warnings"][-1]
    tiles = tile_table.read(output / "most" / "tiles.parquet")
    assert tiles.columns[-len(COLUMNS) :].tolist() == list(COLUMNS)
    assert (tiles["novelty"] > 0.5).mean() == pytest.approx(share, abs=1e-4)
    assert (tiles["novelty_flags"] == "unlike training").equals(tiles["novelty"] > 0.5)
    # Tumor is darker than stroma, so the columns are those of the right tiles.
    assert np.corrcoef(tiles["novelty"], tiles["prob_tumor"])[0, 1] > 0.9
    pd.testing.assert_frame_equal(
        tiles.drop(columns="novelty_flags"),
        tile_table.read(output / "most" / "tiles.csv").drop(columns="novelty_flags"),
        rtol=1e-6,
        check_dtype=False,
    )


def test_slides_without_novelty_are_kept_until_redo(tmp_path: pathlib.Path) -> None:
    jobs = [cohort_jobs.Job("a", planted.write_slide(tmp_path / "a.tif", 0.5))]
    assert cohort.run(jobs, model(), cohort.Settings(), tmp_path / "out") == 0
    assert "unlike_training" not in pd.read_csv(tmp_path / "out" / "slides.csv")
    with pytest.raises(RunError, match="novelty: saved 'absent', now 'dark'"):
        cohort.run(jobs, model(novelty=DarknessScorer()), cohort.Settings(), tmp_path / "out")


def test_a_slide_without_tiles_has_no_share() -> None:
    table = pd.DataFrame({"row": []})
    novel_tiles.add_columns(table, [])
    assert novel_tiles.share(table) is None
    assert novel_tiles.warnings(None) == novel_tiles.warnings(0.1) == []
