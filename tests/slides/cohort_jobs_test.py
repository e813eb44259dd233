"""Files, folders and lists become one uniquely named job per slide."""

import pathlib

import numpy as np
import pytest

from data_pipelines.errors import DataError
from histojax.core import shards
from histojax.core.errors import RunError
from histojax.slides import cohort_jobs
from histojax.slides.readers.reader import open_slide
from tests.conftest import SHARED
from tests.helpers.slide_files import write_dicom
from tests.helpers.tissue_pictures import tissue_picture


def touch(folder: pathlib.Path, *names: str) -> list[pathlib.Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_files_folders_and_lists_keep_their_order(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "s/b.svs", "s/deep/a.TIFF", "s/notes.txt", "one.ndpi", "listed/x.svs", "listed/x.geojson")
    (tmp_path / "listed" / "cohort.csv").write_text("slide,mpp,roi\nx.svs,0.5,x.geojson\nmissing.svs\n")
    found = cohort_jobs.find(
        [str(tmp_path / "one.ndpi"), str(tmp_path / "s"), str(tmp_path / "listed/cohort.csv")], mpp=0.25
    )
    assert [(job.name, job.mpp) for job in found] == [
        ("one", 0.25), ("b", 0.25), ("deep_a", 0.25), ("x", 0.5), ("missing", 0.25),
    ]  # fmt: skip
    assert found[3].roi == tmp_path / "listed" / "x.geojson"
    assert found[4].roi is None
    assert found[4].slide == tmp_path / "listed" / "missing.svs"


def test_a_name_does_not_depend_on_the_other_slides(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "case1/slide.svs", "case2/slide.svs", "case2/other.svs")
    names = {job.slide: job.name for job in cohort_jobs.find([str(tmp_path)])}
    assert sorted(names.values()) == ["case1_slide", "case2_other", "case2_slide"]
    (tmp_path / "case1" / "slide.svs").unlink()
    assert all(names[job.slide] == job.name for job in cohort_jobs.find([str(tmp_path)]))


def test_the_levels_of_a_dicom_series_are_one_slide(tmp_path: pathlib.Path) -> None:
    pixels = tissue_picture(200, 300)
    fine = write_dicom(tmp_path / "b.dcm", pixels, 0.5, series="1.2.3")
    coarse = write_dicom(tmp_path / "a.dcm", pixels[::2, ::2], 1.0, series="1.2.3", level=1)
    other = write_dicom(tmp_path / "c.dcm", pixels, 0.5, series="1.2.4")
    slide, second = cohort_jobs.find([str(tmp_path)])
    assert (slide.slide, second.slide) == (coarse, other)
    assert slide.content == cohort_jobs.Job("x", fine).content != second.content
    assert [job.slide for job in cohort_jobs.find([str(fine), str(coarse)])] == [fine]
    for path in (fine, coarse):
        with open_slide(path) as opened:
            assert [(level.width, level.height) for level in opened.levels] == [(300, 200), (150, 100)]
            assert (opened.width, opened.height, opened.mpp) == (300, 200, 0.5)
            np.testing.assert_array_equal(opened.read(0, 0, 300, 200, 300, 200), pixels)
    before = slide.content
    fine.unlink()
    assert cohort_jobs.Job("x", coarse).content != before, "all files of the series count"


def test_different_settings_of_two_levels_are_refused(tmp_path: pathlib.Path) -> None:
    pixels = tissue_picture(200, 300)
    write_dicom(tmp_path / "a.dcm", pixels, 0.5)
    write_dicom(tmp_path / "b.dcm", pixels[::2, ::2], 1.0, level=1)
    (tmp_path / "list.csv").write_text("slide,override_mpp\na.dcm,0.25\nb.dcm,0.5\n")
    with pytest.raises(RunError, match=r"a\.dcm and .*b\.dcm are the same slide with different mpp, roi or patient_id"):
        cohort_jobs.find([str(tmp_path / "list.csv")])


def test_a_real_dicom_folder_is_one_slide() -> None:
    folder = SHARED / "slides" / "dicom_camelyon"
    if not folder.is_dir():
        # The repository holds no real slides; the series that are made above are tested everywhere.
        pytest.skip(f"no real slides in {folder}")
    assert [job.name for job in cohort_jobs.find([str(folder)])] == ["jpeg2000"]


def test_a_folder_of_regions_is_matched_by_every_usual_name(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"s/{name}.svs" for name in ("a", "b", "c", "d", "e")))
    touch(tmp_path, "r/a.geojson", "r/b.svs.geojson", "r/c.geojson.gz", "r/d.xml", "r/z.json", "r/notes.txt")
    jobs = cohort_jobs.find([str(tmp_path / "s")], roi=tmp_path / "r")
    names = ["a.geojson", "b.svs.geojson", "c.geojson.gz", "d.xml", None]
    assert [job.roi and job.roi.name for job in jobs] == names
    assert f"{tmp_path / 'r'} has no region for e: their whole tissue is measured" in caplog.text
    assert f"{tmp_path / 'r'} has regions of no slide: z.json" in caplog.text
    touch(tmp_path, "r/a.json")
    with pytest.raises(RunError, match=r"a\.svs: several regions, .*a\.geojson and .*a\.json; keep one"):
        cohort_jobs.find([str(tmp_path / "s")], roi=tmp_path / "r")


def test_two_slides_of_one_name_are_refused_until_they_are_named(tmp_path: pathlib.Path) -> None:
    one, other = touch(tmp_path, "case1/slide.svs", "case2/slide.SVS")
    with pytest.raises(RunError, match=r"case1/slide.svs and .*case2/slide.SVS: both slides have the name 'slide'"):
        cohort_jobs.find([str(one), str(other)])
    assert len(cohort_jobs.find([str(tmp_path)])) == 2, "the remedy that the message names"
    path = tmp_path / "list.csv"
    path.write_text("slide,name\ncase1/slide.svs,\ncase2/slide.SVS,second\n")
    assert [job.name for job in cohort_jobs.find([str(path)])] == ["slide", "second"]
    (hidden,) = touch(tmp_path, ".given.svs")
    assert [job.name for job in cohort_jobs.find([str(hidden)])] == ["given"], "its results must be found again"
    for wrong in ("../up", ".hidden", "a/b"):
        path.write_text(f"slide,name\ncase1/slide.svs,{wrong}\n")
        with pytest.raises(RunError, match=f"line 2: name '{wrong}'"):
            cohort_jobs.find([str(path)])


def test_copies_of_a_slide_are_used_once(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    a, copy, other = touch(tmp_path, "a.svs", "copy/b.svs", "other.svs")
    for path, text in ((a, "slide 1"), (copy, "slide 1"), (other, "slide 2")):
        path.write_text(text)
    assert [job.name for job in cohort_jobs.find([str(tmp_path)])] == ["a", "other"]
    assert f"{copy}: the same slide as {a}; it is used once" in caplog.text
    assert len(cohort_jobs.find([str(a), str(a)])) == 1
    (tmp_path / "list.csv").write_text("slide,mpp\na.svs,0.5\ncopy/b.svs,0.25\n")
    with pytest.raises(RunError, match="the same slide with different mpp, roi or patient_id"):
        cohort_jobs.find([str(tmp_path / "list.csv")])
    (tmp_path / "list.csv").write_text("slide,patient_id\na.svs,P1\ncopy/b.svs,P2\n")
    with pytest.raises(RunError, match="the same slide with different mpp, roi or patient_id"):
        cohort_jobs.find([str(tmp_path / "list.csv")])


def test_regions_of_interest(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "s/a.svs", "s/b.svs", "rois/a.geojson")
    found = cohort_jobs.find([str(tmp_path / "s")], roi=tmp_path / "rois")
    assert [job.roi for job in found] == [tmp_path / "rois/a.geojson", None]
    with pytest.raises(RunError, match="one file for 2 slides"):
        cohort_jobs.find([str(tmp_path / "s")], roi=tmp_path / "rois/a.geojson")
    (job,) = cohort_jobs.find([str(tmp_path / "s/a.svs")], roi=tmp_path / "rois/a.geojson")
    assert job.roi == tmp_path / "rois/a.geojson"
    # A region belongs to one slide: a file of two slides of that name could be either's.
    touch(tmp_path, "s/deep/a.svs")
    with pytest.raises(RunError, match=r"rois/a.geojson: the region of both .*s/a.svs and .*s/deep/a.svs.*deep_a.geo"):
        cohort_jobs.find([str(tmp_path / "s")], roi=tmp_path / "rois")
    touch(tmp_path, "rois/deep_a.geojson")
    found = cohort_jobs.find([str(tmp_path / "s")], roi=tmp_path / "rois")
    assert [job.roi and job.roi.name for job in found] == ["a.geojson", None, "deep_a.geojson"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("path\na.svs\n", "no rows, or no column `slide`"),
        ("slide,mmp\na.svs,1\n", "unknown column mmp"),
        ("slide,mpp\n,1\n", "line 2: the column `slide` is empty"),
        ("slide,mpp\na.svs,1\nb.svs,zero\n", "line 3: mpp 'zero' must be a number"),
        ("slide,mpp\na.svs,0\n", "line 2: mpp '0' must be a number"),
        ("slide,mpp\na.svs,nan\n", "line 2: mpp 'nan' must be a number"),
        ("slide,mpp\na.svs,1\nb,c.svs,1\n", "line 3: 3 cells where the header has 2; quote cells"),
    ],
)
def test_malformed_lists_are_refused(tmp_path: pathlib.Path, text: str, message: str) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(text)
    with pytest.raises((RunError, DataError), match=message):
        cohort_jobs.find([str(path)])


def test_a_folder_without_slides_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="the folder has no slides"):
        cohort_jobs.find([str(tmp_path)])


def test_shards_cover_every_slide_once() -> None:
    all_ = [cohort_jobs.Job(str(i), pathlib.Path(str(i))) for i in range(7)]
    shares = [shards.share(all_, f"{i}/3") for i in range(3)]
    assert sorted((job for share in shares for job in share), key=lambda job: job.name) == all_
    for wrong in ("3/3", "1", "a/2", "-1/2", "0/0"):
        with pytest.raises(RunError, match="is not I/N"):
            shards.share(all_, wrong)


def test_results_hidden_files_and_links_are_no_slides(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(
        tmp_path, "a.svs", "._a.svs", ".ipynb_checkpoints/a-checkpoint.tif", "__MACOSX/a.svs",
        "earlier/a/slide.json", "earlier/a/heatmap.tif", "earlier/a/overlay.png", "out/heatmap.tif",
        "tiles/train_tiles.json", "tiles/a/a_x0_y0.png",
    )  # fmt: skip
    (tmp_path / "link.svs").symlink_to("a.svs")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nothing.svs").symlink_to("absent.svs")
    assert [job.name for job in cohort_jobs.find([str(tmp_path)], output=tmp_path / "out")] == ["a"]
    assert "nothing.svs: broken link" in caplog.text
    assert "1 training tiles of `histojax slide train-tiles` are passed over" in caplog.text
    assert [job.name for job in cohort_jobs.find([str(tmp_path / "tiles")])] == ["a_a_x0_y0"], "given on purpose"
