"""`histojax predict` predicts what the evaluation of the run predicted."""

import os
import pathlib
import signal
import sys

import numpy as np
import pandas as pd
import pytest

from histojax.evaluation import predictions
from tests.conftest import WriteImages
from tests.helpers.command import histojax
from tests.helpers.warm_start import run as run_program
from tests.helpers.warm_start import run_until


@pytest.fixture(scope="module")
def tiles(ldcsf_run: pathlib.Path) -> pathlib.Path:
    return ldcsf_run.parent / "tiles"


@pytest.fixture(scope="module")
def table(ldcsf_run: pathlib.Path, tiles: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The predictions of all tiles of the run, written by one program as a smoke test of the verb.

    Its batches have the size of the run's evaluation, because the last bit depends on it.
    """
    output = tmp_path_factory.mktemp("table") / "out.parquet"
    words = ["predict", str(ldcsf_run), str(tiles), f"--output={output}", "--batch_size=32"]
    done = run_program([sys.executable, "-m", "histojax", *words])
    assert done.returncode == 0, done.stderr
    assert f"72 of 72 images are in {output}" in done.stdout
    assert "a label is assigned from this probability on" in done.stderr
    return pd.read_parquet(output)


@pytest.mark.slow
def test_predictions_equal_those_of_the_evaluation_exactly(
    ldcsf_run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    argv = [sys.executable, "-m", "histojax.main", "--mode=eval", f"--checkpoint={ldcsf_run}", f"--workdir={tmp_path}"]
    done = run_program(argv)
    assert done.returncode == 0, done.stderr
    evaluated = predictions.read(tmp_path / "predictions.parquet").set_index("image_id")
    predicted = table.set_index(
        table["image_id"].str.removeprefix(f"{tiles}/").map(lambda name: name.rsplit(".", 1)[0])
    ).loc[evaluated.index]  # fmt: skip
    columns = [name for name in evaluated.columns if name.startswith("prob_")]
    assert len(evaluated) > 20
    assert len(columns) == 4
    np.testing.assert_array_equal(predicted[columns].to_numpy(), evaluated[columns].to_numpy())


@pytest.mark.slow
def test_neither_order_nor_batch_size_matters(
    ldcsf_run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    names = table["image_id"].tolist()
    columns = [name for name in table.columns if name.startswith("prob_")]
    (tmp_path / "back.csv").write_text("path\n" + "".join(f"{name}\n" for name in reversed(names)))
    done = histojax(
        "predict", ldcsf_run, tmp_path / "back.csv", "--output", tmp_path / "back-out.csv", "--batch_size=8"
    )
    assert done.returncode == 0, done.stderr
    other = pd.read_csv(tmp_path / "back-out.csv")
    assert other["image_id"].tolist() == names[::-1]
    np.testing.assert_allclose(other[columns].to_numpy()[::-1], table[columns].to_numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_killed_program_resumes_and_writes_the_same_table(
    ldcsf_run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.parquet"
    partial = tmp_path / "out.parquet.partial"
    rows = "".join(f"{name},{i} {name}\n" for i in range(10) for name in table["image_id"])  # time to kill it
    (tmp_path / "many.csv").write_text("path,image_id\n" + rows)
    argv = ["predict", str(ldcsf_run), str(tmp_path / "many.csv"), "--output", str(output)]
    code, _ = run_until(
        [sys.executable, "-m", "histojax", *argv],
        lambda: partial.exists() and partial.read_bytes().count(b"\n") > 60,
        signal.SIGKILL,
    )
    assert code == -signal.SIGKILL
    assert not output.exists()
    done = histojax(*argv)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stderr
    assert not partial.exists()
    undisturbed = histojax(*argv[:-1], tmp_path / "one.parquet")
    assert "resuming after" not in undisturbed.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(output), pd.read_parquet(tmp_path / "one.parquet"))


@pytest.mark.slow
def test_an_ensemble_with_turned_views_and_unreadable_images(
    ldcsf_run: pathlib.Path, tiles: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    argv = [f"{ldcsf_run},{ldcsf_run}/checkpoints/last", tiles, bad, "--tta=dihedral", "--threshold=0.5"]
    done = histojax("predict", *argv, "--output", tmp_path / "out.csv", "--strict")
    assert done.returncode == 1
    assert f"1 of 73 images could not be read: see {tmp_path}/out.failed.csv" in done.stdout
    assert "error: 1 of 73 images could not be read, which --strict does not allow" in done.stderr
    assert "Traceback" not in done.stderr
    assert pd.read_csv(tmp_path / "out.failed.csv")["image_id"].tolist() == [str(bad)]
    other = pd.read_csv(tmp_path / "out.csv")
    columns = [name for name in table.columns if name.startswith("prob_")]
    difference = np.abs(other[columns].to_numpy() - table[columns].to_numpy()).max()
    assert 1e-6 < difference < 0.5
    for name in columns:
        predicted = other[name.replace("prob", "predicted")]
        assert predicted.tolist() == (other[name] >= 0.5).astype(int).tolist()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "nowhere"], "nowhere: no such file or folder"),
        (["run", "empty"], "empty: no image found"),
        (["run", "1.png", "--output=x.txt"], "--output=x.txt is not a file name that ends in .csv or .parquet"),
        (["run", "1.png"], "run does not exist; give the work directory"),
        ([",", "1.png"], "no run is named"),
        (["run", "1.png", "--threads=0"], "--threads"),
    ],
)
def test_user_errors_are_reported(
    tmp_path: pathlib.Path, write_images: WriteImages, argv: list[str], message: str
) -> None:
    write_images(tmp_path, ["1.png"])
    (tmp_path / "empty").mkdir()
    os.chdir(tmp_path)
    done = histojax("predict", *argv)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "predictions.csv").exists()
