"""Features of slides: TRIDENT's layout, resumed in the middle of a slide with the same bytes, failures reported."""

import json
import pathlib

import h5py
import numpy as np
import pytest

from histojax.core.errors import RunError
from histojax.inference.embed import slide_features
from histojax.inference.embed.slide_features import Settings
from histojax.slides.cohort_jobs import Job
from histojax.slides.readers.reader import open_slide
from tests.helpers import planted
from tests.helpers.colour_embedder import ColourEmbedder
from tests.helpers.slide_files import write_pyramid
from tests.helpers.tissue_pictures import GLASS

SETTINGS = Settings(tile_um=24.0, overlap=0.25)


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Job:
    return Job("a", planted.write_slide(tmp_path / "a.tif", 0.5))


def embed(job: Job, output: pathlib.Path, embedder: ColourEmbedder, **options: bool) -> dict[str, str]:
    return slide_features.run([job], embedder, SETTINGS, output, **options)  # type: ignore[arg-type]


def test_a_file_has_trident_s_arrays_and_attributes(job: Job, tmp_path: pathlib.Path) -> None:
    embedder = ColourEmbedder(image_size=16)
    assert embed(job, tmp_path / "out", embedder) == {}
    with h5py.File(tmp_path / "out" / "a.h5") as file, open_slide(job.slide) as slide:
        features, coords = file["features"], file["coords"]
        assert (features.dtype, coords.dtype, features.shape[1], coords.shape[1]) == (np.float32, np.int64, 3, 2)
        assert len(features) == len(coords) == embedder.num_embedded > 20
        attributes = dict(coords.attrs)
        tile = attributes["patch_size_level0"]
        assert tile == round(24.0 / slide.mpp)
        x, y = coords[3]
        pixels = slide.read(int(x), int(y), int(tile), int(tile), 16, 16)
        np.testing.assert_allclose(features[3], pixels.mean((0, 1)), rtol=1e-5)
        assert dict(features.attrs) == {"name": "a", "savetodir": str(tmp_path / "out"), "encoder": "colours"}
        assert (attributes["patch_size"], attributes["overlap"], attributes["level0_width"]) == (16, 4, slide.width)
        assert attributes["level0_mpp"] == slide.mpp
        assert attributes["mpp"] == tile * slide.mpp / 16
        assert attributes["level0_magnification"] == round(10 / slide.mpp)
        assert json.loads(file.attrs["histojax"])["tile_um"] == 24.0


def test_a_slide_killed_twice_ends_with_the_same_bytes(job: Job, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "out" / "a.h5"
    embed(job, output.parent, ColourEmbedder(image_size=16))
    undisturbed = output.read_bytes()
    output.unlink()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            embed(job, output.parent, ColourEmbedder(image_size=16, killed_after=1))
    assert not output.exists()
    last = ColourEmbedder(image_size=16)
    embed(job, output.parent, last)
    with h5py.File(output) as file:
        assert last.num_embedded == len(file["features"]) - 8
    assert output.read_bytes() == undisturbed
    assert [path.name for path in output.parent.iterdir()] == ["a.h5"]


def test_finished_slides_are_kept_and_other_settings_refused(job: Job, tmp_path: pathlib.Path) -> None:
    embed(job, tmp_path / "out", ColourEmbedder(image_size=16))
    again = ColourEmbedder(image_size=16)
    embed(job, tmp_path / "out", again)
    assert again.num_embedded == 0
    with pytest.raises(RunError, match=r"a\.h5 was made with different settings:\n  batch_size: saved 4, now 2"):
        embed(job, tmp_path / "out", ColourEmbedder(image_size=16, batch_size=2))
    embed(job, tmp_path / "out", ColourEmbedder(image_size=16, batch_size=2), redo=True)


def test_a_slide_without_tissue_is_empty_and_a_damaged_one_is_reported(tmp_path: pathlib.Path) -> None:
    glass = write_pyramid(tmp_path / "glass.tif", np.full((256, 256, 3), GLASS, np.uint8), 1.0)
    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    jobs = [Job("bad", tmp_path / "bad.tif"), Job("glass", glass)]
    failed = slide_features.run(jobs, ColourEmbedder(image_size=16), SETTINGS, tmp_path / "out")  # type: ignore[arg-type]
    assert list(failed) == ["bad"]
    with h5py.File(tmp_path / "out" / "glass.h5") as file:
        assert file["features"].shape == (0, 3)
        assert file["coords"].shape == (0, 2)
