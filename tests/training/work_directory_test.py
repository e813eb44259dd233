"""A work directory: a refused start changes nothing, damaged files are rewritten, and more epochs continue a run."""

import errno
import json
import logging
import os
import pathlib
import shlex
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from histojax.core.errors import RunError
from histojax.core.locks import owned
from histojax.core.settings import config_hash
from histojax.distributed.sharding import Layout
from histojax.training import build, checkpoint, loading, loop, pretrained, work_directory
from histojax.training.checkpoint import BEST, LAST
from histojax.training.state import ModelState
from histojax.training.writer import MetricsWriter, RunFile
from tests.helpers.command import histojax
from tests.helpers.quick_run import get_config, images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run of two epochs. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert loop.train_and_evaluate(get_config(), workdir)
    return workdir


@pytest.fixture
def workdir(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def contents(workdir: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Return when each file was written, and what it holds."""
    return {
        str(path.relative_to(workdir)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def saved_config(workdir: pathlib.Path) -> dict:
    saved = work_directory.read_saved(workdir)
    assert saved is not None
    return saved["config"]


# ---- Check first, write later ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__batch_size": 16}, r"belongs to a run with another config:\n  train.batch_size: saved 8, now 16"),
        ({"data__split__seed": 1}, r"data.split.seed: saved 0, now 1"),
        ({"train__epochs": 1}, "train.epochs=1 ends at step 3, but the run in .* has reached step 6"),
        ({"train__epochs": 0}, "train.epochs=0 is not at least 1"),
    ],
)
def test_a_refused_start_changes_nothing(workdir: pathlib.Path, fields: dict[str, object], message: str) -> None:
    before = contents(workdir)
    with pytest.raises(RunError, match=message):
        loop.train_and_evaluate(get_config(**fields), workdir)
    assert contents(workdir) == before


def test_a_start_on_other_data_changes_nothing(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    root = images(tmp_path / "images")
    next(root.rglob("*.png")).unlink()
    before = contents(workdir)
    with pytest.raises(DataError, match="has changed since the run began"):
        loop.train_and_evaluate(get_config(data__root=str(root)), workdir)
    assert contents(workdir) == before


def test_a_start_with_a_damaged_checkpoint_changes_nothing(workdir: pathlib.Path) -> None:
    (checkpoint.series(workdir, LAST) / "6" / "meta" / "metadata").write_text("")
    before = contents(workdir)
    with pytest.raises(RunError, match="delete it to resume from step 3"):
        loop.train_and_evaluate(get_config(), workdir)
    assert contents(workdir) == before


def test_a_second_run_in_the_same_folder_is_refused(workdir: pathlib.Path) -> None:
    with owned(workdir):
        before = contents(workdir)
        with pytest.raises(RunError, match=rf"^{workdir} is in use by another process .pid {os.getpid()}"):
            loop.train_and_evaluate(get_config(), workdir)
        assert contents(workdir) == before


def test_a_run_whose_folder_was_taken_over_saves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run = loop._open_run

    def taken_over(*arguments: object) -> object:
        (tmp_path / "run" / ".owner").write_text("{}")
        return open_run(*arguments)

    monkeypatch.setattr(loop, "_open_run", taken_over)
    with pytest.raises(RunError, match="another process has taken over"):
        loop.train_and_evaluate(get_config(), tmp_path / "run")
    for series in (LAST, BEST):
        assert checkpoint.complete_steps(checkpoint.series(tmp_path / "run", series)) == []


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (OSError("x"), "failed: OSError: x")]
)
def test_a_session_that_ends_in_the_final_evaluation_is_recorded(
    workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    def end(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop.evaluate, "predict_split", end)
    with pytest.raises(type(error)):
        loop.train_and_evaluate(get_config(), workdir)
    sessions = json.loads((workdir / "run.json").read_text())["sessions"]
    assert [session["status"] for session in sessions] == ["finished", status]


def test_the_next_commands_can_be_typed_whatever_the_folder_is_called(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run [lr=0.1]")
    config = ("--config", "tests/helpers/quick_run.py")
    for done in (
        histojax("train", *config, "--workdir", workdir),
        histojax("eval", "--checkpoint", workdir, "--workdir", workdir),
    ):
        assert done.returncode == 0, done.stderr
        (command,) = [line for line in done.stdout.splitlines() if line.startswith("Next ")]
        assert shlex.split(command)[1:4] == ["histojax", "report", str(workdir)]


# ---- After a power cut ----------------------------------------------------------------------------------------------


def test_damaged_files_beside_the_checkpoints_are_written_again(
    workdir: pathlib.Path, finished: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage = {
        "config.json": b"",
        "run.json": b'{"sess',
        "results.json": b"\0" * 99,
        "split.csv": b"",
        "results.txt": b"",
    }
    for name, content in damage.items():
        (workdir / name).write_bytes(content)
    assert loop.train_and_evaluate(get_config(), workdir)
    for name in ("config.json", "split.csv", "results.txt"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (workdir, finished))
    assert ours["splits"] == theirs["splits"]
    assert len(json.loads((workdir / "run.json").read_text())["sessions"]) == 1
    assert "run.json: damaged, so it no longer lists the earlier sessions" in caplog.text


LINES = [json.dumps({"step": step, "train/loss": 0.5}).encode() for step in (1, 2, 3)]


@given(st.binary(max_size=40), st.integers(0, 3))
def test_a_damaged_line_of_the_curves_takes_no_other_line_with_it(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, place: int
) -> None:
    folder = tmp_path_factory.mktemp("curves")
    lines = [*LINES[:place], garbage, *LINES[place:]]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    MetricsWriter(folder, 3, "").__exit__()
    kept = (folder / "metrics.jsonl").read_bytes().splitlines()
    assert [line for line in kept if line in LINES] == LINES


TREES = st.recursive(
    st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["sessions", "x"]), inner),
)


@settings(max_examples=25)
@given(st.binary(max_size=40) | TREES.map(lambda tree: json.dumps(tree).encode()))
def test_any_content_of_run_json_is_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("run") / "run.json"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histojax.training.writer.environment", dict)  # it asks git
        RunFile(path, 0, {}).end("finished", 1)
    assert json.loads(path.read_text())["sessions"][-1]["status"] == "finished"


# ---- A full disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_while_the_curves_are_written_names_the_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricsWriter(tmp_path, 0, "") as writer:

        def full(_: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(writer._lines, "write", full, raising=False)
        with pytest.raises(OSError, match="No space left") as caught:
            writer.write(1, {"train/loss": 0.5})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


# ---- The same run, longer or from an earlier version -----------------------------------------------------------------


def test_a_finished_run_goes_on_if_the_epochs_are_raised(
    workdir: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "histojax")
    assert loop.train_and_evaluate(get_config(train__epochs=3), workdir)
    assert "train.epochs: 2 until step 6, now 3; the cosine schedule is now that of 3 epochs" in caplog.text
    assert checkpoint.complete_steps(checkpoint.series(workdir, LAST))[-1] == 9
    assert json.loads((workdir / "config.json").read_text())["train"]["epochs"] == 3
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 9


def test_a_run_that_stopped_early_may_be_given_more_patience(workdir: pathlib.Path) -> None:
    work_directory.check_config(workdir, saved_config(workdir), get_config(train__early_stopping=5))


def test_a_best_checkpoint_of_another_schedule_is_made_again(workdir: pathlib.Path) -> None:
    # Killed after the best checkpoint of step 6 was saved and before the last one was.
    shutil.rmtree(checkpoint.series(workdir, LAST) / "6")
    best = checkpoint.series(workdir, BEST)
    shutil.rmtree(best)
    shutil.copytree(checkpoint.series(workdir, LAST) / "3", best / "6")
    stale = checkpoint.digest(best / "6")
    assert loop.train_and_evaluate(get_config(train__epochs=3), workdir)
    (step,) = checkpoint.complete_steps(best)
    assert step in (6, 9)
    assert checkpoint.digest(best / str(step)) != stale


def test_a_run_from_before_a_field_existed_can_be_resumed(workdir: pathlib.Path) -> None:
    config, saved = get_config(), saved_config(workdir)
    del saved["plugins"], saved["train"]["batch_norm"], saved["data"]["tiles"], saved["loss"]["focal_gamma"]
    work_directory.check_config(workdir, saved, config)
    config.train.batch_norm = "device"
    with pytest.raises(RunError, match=r"train\.batch_norm: saved 'global', now 'device'"):
        work_directory.check_config(workdir, saved, config)


def test_a_field_that_no_longer_exists_is_ignored_with_a_warning(
    workdir: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = saved_config(workdir)
    saved["train"]["removed"] = 3
    work_directory.check_config(workdir, saved, get_config())
    assert "the field train.removed=3 of its config no longer exists" in caplog.text
    saved["model"]["options"]["dropout"] = 0.5  # an option is no such field: the model would be another one
    with pytest.raises(RunError, match=r"model\.options\.dropout: saved 0.5, now 'absent'"):
        work_directory.check_config(workdir, saved, get_config())


# ---- The weights of another run --------------------------------------------------------------------------------------


def leaves(model: ModelState) -> dict[str, np.ndarray]:
    """Return copies of parameters and statistics by name."""
    return {name: np.array(leaf) for name, leaf in pretrained._leaves(model)}


@pytest.mark.parametrize("classes", [("benign", "malignant"), ("normal", "tumor")])
def test_a_run_may_start_from_the_weights_of_another(
    finished: pathlib.Path, classes: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "histojax")
    config = get_config(seed=5)
    task = build.task(config, classes, [5, 5], 10)
    state = build.program(config, task, Layout(1)).init()
    theirs, fresh = leaves(loading.load(finished).model), leaves(state.model)
    state, origin = pretrained.fill(state, "vit", str(finished), classes=classes)
    same = classes == ("benign", "malignant")
    for name, value in leaves(state.model).items():
        expected = theirs if same or not name.startswith("head/") else fresh
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert not np.array_equal(theirs["head/kernel"], fresh["head/kernel"])
    hashes = f"sha256 {checkpoint.digest(checkpoint.find(finished))}…, config {config_hash(saved_config(finished))}"
    assert origin.startswith(f"{finished} ({hashes}), ")
    assert origin.endswith("; random at first: head") == (not same)
    assert ("has the classes benign, malignant: the classifier starts at random" in caplog.text) == (not same)


def test_a_run_of_another_model_gives_no_weights(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = get_config(model__name="resnet18", model__pretrained=str(finished))
    config.model.options = {}
    with pytest.raises(RunError, match=f"^model.pretrained={finished}: a run of the model vit; use model.name=vit"):
        loop.train_and_evaluate(config, tmp_path / "run")
    config.model.pretrained = str(tmp_path)
    with pytest.raises(RunError, match=f"^{tmp_path} has no complete checkpoint; give the work directory"):
        loop.train_and_evaluate(config, tmp_path / "run")


def started_from(source: pathlib.Path, workdir: pathlib.Path, **fields: object) -> dict:
    """Train one epoch from the weights of a source; return run.json."""
    config = get_config(model__pretrained=str(source), train__epochs=1, train__freeze_backbone_epochs=1)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    assert loop.train_and_evaluate(config, workdir)
    return json.loads((workdir / "run.json").read_text())


def test_a_run_says_which_run_it_started_from_also_when_it_resumes(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    origin = started_from(finished, tmp_path / "run")["pretrained"]
    before, after = leaves(loading.load(finished).model), leaves(loading.load(tmp_path / "run").model)
    np.testing.assert_array_equal(before["patch_embed/proj/kernel"], after["patch_embed/proj/kernel"])  # frozen so far
    report = tmp_path / "report"
    assert histojax("report", finished, "--output", report).returncode == 0
    theirs = json.loads((report / "report.json").read_text())["sources"][0]["facts"]["config_hash"]
    assert origin.startswith(f"{finished} (sha256 ")
    assert f"…, config {theirs}), " in origin
    assert json.loads((tmp_path / "run" / "results.json").read_text())["pretrained"] == origin
    assert started_from(finished, tmp_path / "run", train__epochs=2)["pretrained"] == origin


@pytest.mark.parametrize("status", ["interrupted", "running", "failed: OSError: full"])
def test_an_unfinished_run_gives_no_weights_but_its_checkpoints_do(
    status: str, workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = json.loads((workdir / "run.json").read_text())
    run["sessions"][-1]["status"] = status
    (workdir / "run.json").write_text(json.dumps(run))
    with pytest.raises(RunError) as caught:
        started_from(workdir, tmp_path / "new")
    best = checkpoint.find(workdir)
    assert str(caught.value) == (
        f"model.pretrained={workdir}: this run is not finished (run.json: {status}). "
        f"Rerun its command to finish it, or name a checkpoint, such as {best}"
    )
    assert not (tmp_path / "new").exists()
    assert started_from(best, tmp_path / "new")["pretrained"].startswith(f"{best} (sha256 ")
    (workdir / "run.json").unlink()  # a copy of checkpoints alone
    assert started_from(workdir, tmp_path / "newer")["pretrained"].startswith(f"{workdir} (sha256 ")


def test_options_of_the_other_run_matter_where_they_change_parameters(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    message = (
        rf"^model\.pretrained={finished}: a run of vit with other options; use --config\.model\.options\.image_size=16$"
    )
    with pytest.raises(RunError, match=message):  # the grid of its position embedding
        started_from(finished, tmp_path / "run", model__options__image_size=32, data__image_size=32)
    assert not (tmp_path / "run").exists()
    started_from(finished, tmp_path / "larger", data__image_size=32)
    config = get_config(model__pretrained=str(finished))
    config.model.options.dropout = 0.5
    config.model.options.pool = "token_mean"  # only the classifier has another shape
    pretrained.check(config, tmp_path / "run")


def test_the_flag_that_other_programs_have_is_explained() -> None:
    done = histojax("train", "--config=dala_resnet50_breakhis", "--workdir=new", "--init_from=old")
    assert done.returncode == 2
    assert "--init_from: start from the weights of a file or a run with --config.model.pretrained=PATH" in done.stderr
