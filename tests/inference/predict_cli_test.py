"""`histojax predict` as a program: what it says is what the evaluation of the run said."""

import pathlib
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from histojax.evaluation import predictions
from tests.conftest import ROOT, WriteImages
from tests.helpers.programs import run as run_program
from tests.helpers.programs import run_until, small_ldcsf_run

PROGRAM = [sys.executable, "-c", "import sys; from histojax import predict_cli; predict_cli.main(sys.argv[1:])"]


def predict(*words: object) -> subprocess.CompletedProcess[str]:
    return run_program([*PROGRAM, *map(str, words)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_ldcsf_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def tiles(run: pathlib.Path) -> pathlib.Path:
    return run.parent / "tiles"


@pytest.fixture(scope="module")
def table(run: pathlib.Path, tiles: pathlib.Path) -> pd.DataFrame:
    """What predict says of all tiles that the run knew."""
    output = run.parent / "out.parquet"
    done = predict(run, tiles, "--output", output)
    assert done.returncode == 0, done.stderr
    assert f"72 of 72 images are in {output}" in done.stdout
    assert "a label is there from" in done.stderr
    return pd.read_parquet(output)


@pytest.mark.slow
def test_it_says_exactly_what_the_evaluation_says(
    run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    evaluate = [sys.executable, "-m", "histojax.main", "--mode=eval", f"--checkpoint={run}", f"--workdir={tmp_path}"]
    done = run_program(evaluate)
    assert done.returncode == 0, done.stderr
    evaluated = predictions.read(tmp_path / "predictions.parquet").set_index("image_id")
    ours = table.set_index(
        table["image_id"].str.removeprefix(f"{tiles}/").map(lambda name: name.rsplit(".", 1)[0])
    ).loc[evaluated.index]  # fmt: skip
    columns = [name for name in evaluated.columns if name.startswith("prob_")]
    assert len(evaluated) > 20
    assert len(columns) == 4
    np.testing.assert_array_equal(ours[columns].to_numpy(), evaluated[columns].to_numpy())


@pytest.mark.slow
def test_neither_order_nor_batch_matters(
    run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    names = table["image_id"].tolist()
    columns = [name for name in table.columns if name.startswith("prob_")]
    (tmp_path / "back.csv").write_text("path\n" + "".join(f"{name}\n" for name in reversed(names)))
    done = predict(run, tmp_path / "back.csv", "--output", tmp_path / "back-out.csv", "--batch_size=8")
    assert done.returncode == 0, done.stderr
    other = pd.read_csv(tmp_path / "back-out.csv")
    assert other["image_id"].tolist() == names[::-1]
    np.testing.assert_allclose(other[columns].to_numpy()[::-1], table[columns].to_numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_killed_program_goes_on_and_says_the_same(
    run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.parquet"
    partial = tmp_path / "out.parquet.partial"
    rows = "".join(f"{name},{i} {name}\n" for i in range(20) for name in table["image_id"])  # time to be killed in
    (tmp_path / "many.csv").write_text("path,image_id\n" + rows)
    words = [*PROGRAM, str(run), str(tmp_path / "many.csv"), "--output", str(output)]
    code, _ = run_until(words, lambda: partial.exists() and partial.read_bytes().count(b"\n") > 60, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not output.exists()
    done = run_program(words)
    assert done.returncode == 0, done.stderr
    assert "images that are answered" in done.stderr
    assert not partial.exists()
    undisturbed = run_program([*words[:-1], str(tmp_path / "one.parquet")])
    assert "images that are answered" not in undisturbed.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(output), pd.read_parquet(tmp_path / "one.parquet"))


@pytest.mark.slow
def test_an_ensemble_with_turned_views_and_unreadable_images(
    run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    words = [f"{run},{run}/checkpoints/last", tiles, bad, "--tta=dihedral", "--threshold=0.5"]
    done = predict(*words, "--output", tmp_path / "out.csv", "--strict")
    assert done.returncode == 1
    assert f"error: 1 of 73 images could not be read: see {tmp_path}/out.failed.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert pd.read_csv(tmp_path / "out.failed.csv")["image_id"].tolist() == [str(bad)]
    other = pd.read_csv(tmp_path / "out.csv")
    columns = [name for name in table.columns if name.startswith("prob_")]
    difference = np.abs(other[columns].to_numpy() - table[columns].to_numpy()).max()
    assert 1e-6 < difference < 0.5
    for name in columns:
        there = other[name.replace("prob", "predicted")]
        assert there.tolist() == (other[name] >= 0.5).astype(int).tolist()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "nowhere"], "nowhere: no such file or folder"),
        (["run", "empty"], "empty: no image there"),
        (["run", "1.png", "--output=x.txt"], "--output=x.txt is no file that ends in .csv or .parquet"),
        (["run", "1.png"], "run does not exist; name a work directory"),
        ([",", "1.png"], "no run is named"),
        (["run", "1.png", "--threads=0"], "--threads=0 is not at least 1"),
    ],
)
def test_what_a_user_can_mend_is_told(
    tmp_path: pathlib.Path, write_images: WriteImages, words: list[str], told: str
) -> None:
    write_images(tmp_path, ["1.png"])
    (tmp_path / "empty").mkdir()
    program = PROGRAM[2].replace("import sys;", f"import sys; sys.path.insert(0, {str(ROOT)!r});")
    done = subprocess.run([*PROGRAM[:2], program, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "predictions.csv").exists()
