"""Checkpoints through real orbax: bitwise round trips, and errors for damaged, incomplete or foreign ones."""

import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from histojax.distributed.sharding import Layout
from histojax.training import checkpoint
from histojax.training.checkpoint import BEST, FORMAT, LAST, CheckpointError, Checkpoints, find, read_meta, restore

META = {"format": FORMAT, "classes": ["benign", "malignant"], "watch": {"best": None, "best_step": 0}, "ratio": 0.1}
MANIFEST = "sha256.json"


def trees(seed=0, features=4):
    """Return named trees like those of a run: int keys, optax's tuples, typed random keys, scalars, narrow types."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = nnx.State(
        {
            "layer1": {i: {"kernel": normal(8, features), "bias": normal(features)} for i in range(2)},
            "head": {"kernel": normal(features, 2).astype(jnp.bfloat16)},
        }
    )
    stats = nnx.State({"bn1": {"mean": normal(8)}})
    streams = nnx.State({"dropout": {"rngs": {"key": jax.random.key(seed), "count": jnp.uint32(7)}}})
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    model = {"params": params, "stats": stats, "rng": streams}
    return {
        "model": model,
        "ema": jax.tree.map(lambda a: a, model),
        "train": {"step": jnp.int32(seed), "opt": optimizer.init(params), "key": jax.random.key(seed + 1)},
    }


def abstract(named, sharding=None):
    sharding = sharding or Layout(1, jax.devices()[:1]).replicated
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), named)


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(folder, *steps, keep=9, **options):
    with Checkpoints(folder, keep) as series:
        for step in steps:
            series.save(step, trees(step, **options), META | {"step": step})
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A work directory with the last steps 1 and 2 and the best step 1. Copy it before damaging it."""
    workdir = tmp_path_factory.mktemp("run")
    save(checkpoint.series(workdir, LAST), 1, 2)
    save(checkpoint.series(workdir, BEST), 1)
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def last(workdir, step) -> pathlib.Path:
    return checkpoint.series(workdir, LAST) / str(step)


def test_a_checkpoint_of_another_version_is_rejected(tmp_path):
    with Checkpoints(checkpoint.series(tmp_path, LAST), 2) as series:
        series.save(1, trees(), META | {"format": 1})
    with pytest.raises(CheckpointError, match=r"another version of histojax \(format 1; this version reads 2\)"):
        read_meta(last(tmp_path, 1))


# ---- Round trips -----------------------------------------------------------------------------------------------------


def test_a_round_trip_is_bitwise_exact(saved):
    expected = trees(2)
    got = restore(last(saved, 2), abstract(expected))
    assert_equal(got, expected)
    # A restored key draws what the saved one would have drawn.
    assert jax.random.bits(got["train"]["key"]) == jax.random.bits(expected["train"]["key"])
    assert read_meta(last(saved, 2)) == META | {"step": 2}


@pytest.mark.parametrize("names", [("model",), ("ema",), ("model", "train")])
def test_a_restore_may_leave_trees_out(saved, names):
    expected = {name: trees(1)[name] for name in names}
    assert_equal(restore(last(saved, 1), abstract(expected)), expected)


@pytest.mark.devices
def test_saved_in_shards_and_restored_replicated_or_in_shards(tmp_path):
    expected, layout = {"model": trees()["model"]}, Layout(2)
    shardings = layout.state(expected)
    assert any("fsdp" in sharding.spec for sharding in jax.tree.leaves(shardings))
    folder = tmp_path / "last"
    with Checkpoints(folder, 1) as series:
        series.save(1, jax.device_put(expected, shardings), META)
    for devices in (1, 4):
        target = Layout(1, jax.devices()[:devices]).replicated
        got = restore(folder / "1", abstract(expected, target))
        assert_equal(got, expected)
        assert {leaf.sharding for leaf in jax.tree.leaves(got)} == {target}
    wanted = jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), expected, shardings
    )
    got = restore(folder / "1", wanted)
    assert_equal(got, expected)
    assert jax.tree.map(lambda a: a.sharding, got) == shardings


def test_only_the_newest_checkpoints_stay(tmp_path):
    folder = save(tmp_path / "last", 1, 2, 3, 4, keep=2)
    with Checkpoints(folder, 2) as series:
        assert series.steps() == [3, 4]
        series.save(10, trees(), META)
        series.wait()
        assert series.steps() == [4, 10]  # by number, not by name
    assert sorted(path.name for path in folder.iterdir()) == ["10", "4"]


def test_an_existing_step_is_not_saved_again(tmp_path):
    folder = save(tmp_path / "last", 1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with Checkpoints(folder, 2) as series:
        series.save(1, trees(5), META)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert_equal(restore(folder / "1", abstract(trees(1))), trees(1))


def test_saving_copies_so_that_the_next_step_may_donate(tmp_path):
    state = trees(3)
    expected = jax.tree.map(lambda a: a.copy(), state)
    with Checkpoints(tmp_path / "last", 1) as series:
        series.save(1, state, META)
        jax.tree.map(lambda a: a.delete(), state)
    assert_equal(restore(tmp_path / "last" / "1", abstract(expected)), expected)


def test_a_save_in_progress_is_finished_when_the_run_fails(tmp_path):
    def fail():
        with Checkpoints(tmp_path / "last", 1) as series:
            series.save(1, trees(), META)
            raise RuntimeError("in the loop")

    with pytest.raises(RuntimeError, match="in the loop"):
        fail()
    assert_equal(restore(tmp_path / "last" / "1", abstract(trees())), trees())


# ---- Finding --------------------------------------------------------------------------------------------------------


def test_find_takes_the_best_of_a_work_directory_and_the_newest_of_a_series(saved, tmp_path):
    best = checkpoint.series(saved, BEST)
    assert find(saved) == best / "1"
    assert find(saved / "checkpoints") == best / "1"
    assert find(checkpoint.series(saved, LAST)) == last(saved, 2)
    assert find(last(saved, 1)) == last(saved, 1)
    only_last = shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(checkpoint.series(only_last, BEST))
    assert find(only_last) == last(only_last, 2)


def test_find_takes_relative_paths(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert find(pathlib.Path(saved.name)) == checkpoint.series(saved, BEST) / "1"


def test_the_error_without_a_checkpoint_says_what_to_give(tmp_path):
    for path, fact in ((tmp_path, "has no complete checkpoint"), (tmp_path / "no", "does not exist")):
        with pytest.raises(CheckpointError, match=f"^{path} {fact}; give the work directory"):
            find(path)


# ---- Interrupted -----------------------------------------------------------------------------------------------------


def remove_checksums(workdir, step):
    (last(workdir, step) / MANIFEST).unlink()


def test_a_save_without_checksums_is_ignored_and_deleted(copy, caplog):
    remove_checksums(copy, 2)
    folder = checkpoint.series(copy, LAST)
    with caplog.at_level(logging.WARNING):
        assert find(folder) == last(copy, 1)
    assert [r.getMessage() for r in caplog.records] == [f"{last(copy, 2)}: this save was interrupted; ignoring it"]
    caplog.clear()
    with Checkpoints(folder, 2) as series:
        assert series.steps() == [1]
        assert last(copy, 2).is_dir()
        with caplog.at_level(logging.WARNING, logger="histojax"):
            series.discard_incomplete()
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("histojax")]
        assert ours == [f"{last(copy, 2)}: this save was interrupted; deleting it"]
        assert not last(copy, 2).exists()
        # When the run reaches this step again, it saves it again.
        series.save(2, trees(2), META)
    assert_equal(restore(find(folder), abstract(trees(2))), trees(2))


def test_leftovers_of_a_killed_save_are_ignored_and_discarded(copy, caplog):
    folder = checkpoint.series(copy, LAST)
    left = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(last(copy, 2), left, ignore=shutil.ignore_patterns(MANIFEST, "_CHECKPOINT_METADATA"))
    assert find(folder) == last(copy, 2)
    with Checkpoints(folder, 2) as series:
        assert series.steps() == [1, 2]
        with caplog.at_level(logging.WARNING, logger="histojax"):
            series.discard_incomplete()
        assert f"{left}: this save was interrupted; deleting it" in caplog.text
        assert not left.exists()
        series.save(3, trees(3), META)
    assert find(folder) == last(copy, 3)


def test_complete_saves_are_not_discarded(copy, caplog):
    with Checkpoints(checkpoint.series(copy, LAST), 2) as series:
        with caplog.at_level(logging.WARNING, logger="histojax"):
            series.discard_incomplete()
        assert series.steps() == [1, 2]
    assert not [r for r in caplog.records if r.name.startswith("histojax")]


# ---- Damaged --------------------------------------------------------------------------------------------------------


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST
    }


KINDS = {
    "data": lambda name: re.search(r"(^|/)d/[^/]+$", name),
    "metadata": lambda name: name.endswith("_METADATA"),
    "tree": lambda name: name.endswith("manifest.ocdbt"),
    "meta": lambda name: name.startswith("meta/") and not name.endswith("_METADATA"),
}
DAMAGES = {
    "flipped byte": "is damaged",
    "cut in half": "is damaged",
    "empty": "is damaged",
    "deleted": "is missing",
}


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "flipped byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut in half" else b"")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_with_the_remedy(copy, kind, how):
    for step, remedy in ((2, "resume from step 1"), (1, "start from scratch")):
        folder = last(copy, step)
        name, path = next((name, path) for name, path in files_of(folder).items() if KINDS[kind](name))
        damage(path, how)
        with pytest.raises(CheckpointError) as caught:
            restore(folder, abstract({"model": trees()["model"]}))
        message = str(caught.value)
        assert message.startswith(f"{folder}: the file {name} {DAMAGES[how]}"), message
        assert message.endswith(f"Restore the folder from a copy, or delete it to {remedy}."), message


def test_every_file_has_a_checksum(saved):
    # The kinds above are a sample; this checks that the checksums leave no file out.
    recorded = json.loads((last(saved, 2) / MANIFEST).read_text())
    assert recorded.keys() == files_of(last(saved, 2)).keys()
    for kind, matches in KINDS.items():
        assert any(matches(name) for name in recorded), kind


@pytest.mark.parametrize("how", ["cut in half", "empty"])
def test_damaged_checksums_are_reported(copy, how):
    damage(last(copy, 2) / MANIFEST, how)
    with pytest.raises(CheckpointError, match=f"^{last(copy, 2)}: the file {MANIFEST} is damaged.*resume from step 1"):
        restore(last(copy, 2), abstract({"model": trees()["model"]}))


def test_a_damaged_copy_under_another_name_is_reported(copy, tmp_path):
    elsewhere = shutil.copytree(last(copy, 2), tmp_path / "my-model")
    assert find(elsewhere) == elsewhere
    assert_equal(restore(elsewhere, abstract(trees(2))), trees(2))
    damage(next(path for name, path in files_of(elsewhere).items() if KINDS["data"](name)), "flipped byte")
    with pytest.raises(CheckpointError, match=f"^{elsewhere}: the file .* is damaged"):
        restore(elsewhere, abstract(trees(2)))


def test_an_additional_file_is_ignored(copy):
    (last(copy, 2) / ".DS_Store").write_bytes(b"x")
    assert_equal(restore(last(copy, 2), abstract(trees(2))), trees(2))


@pytest.mark.parametrize("how", ["flipped byte", "cut in half", "empty", "deleted"])
def test_damaged_metadata_is_not_read(copy, how):
    damage(next(path for name, path in files_of(last(copy, 2)).items() if KINDS["meta"](name)), how)
    with pytest.raises(CheckpointError, match=f"^{last(copy, 2)}: "):
        read_meta(last(copy, 2))


@pytest.mark.parametrize("content", [None, {"a.txt": "x"}, {"meta/metadata": "[]"}])
def test_a_foreign_folder_is_rejected(tmp_path, content):
    folder = tmp_path / "foreign"
    for name, text in (content or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"^{folder}: cannot be read as a histojax checkpoint"):
        read_meta(folder)
    with pytest.raises(CheckpointError, match=f"^{folder}: "):
        restore(folder, abstract({"model": trees()["model"]}))


# ---- Another model --------------------------------------------------------------------------------------------------


def test_every_mismatch_of_an_array_is_named_at_once(saved):
    wanted = trees(2)["model"]
    params = nnx.to_pure_dict(wanted["params"])
    params["layer1"][2] = params["layer1"].pop(1)
    params["layer1"][0]["kernel"] = jnp.zeros((8, 6))
    wanted["params"] = nnx.State(params)
    with pytest.raises(CheckpointError) as caught:
        restore(last(saved, 2), abstract({"model": wanted}))
    first, *problems = str(caught.value).splitlines()
    assert first == f"{last(saved, 2)}: its 'model' belongs to another model or optimizer:"
    assert sorted(line.strip() for line in problems) == [
        "missing params/layer1/2/bias (4,)",
        "missing params/layer1/2/kernel (8, 4)",
        "params/layer1/0/kernel is (8, 4), the model has (8, 6)",
        "unexpected params/layer1/1/bias (4,)",
        "unexpected params/layer1/1/kernel (8, 4)",
    ]


def test_another_optimizer_is_reported(saved):
    wanted = trees(2)["train"]
    wanted["opt"] = optax.sgd(0.1, momentum=0.9).init(trees(2)["model"]["params"])
    with pytest.raises(CheckpointError, match=r"its 'train' belongs to another model or optimizer:\n  missing opt/"):
        restore(last(saved, 2), abstract({"train": wanted}))


def test_a_tree_that_was_not_saved_is_reported(tmp_path):
    with Checkpoints(tmp_path / "last", 1) as series:
        series.save(1, {"model": trees()["model"]}, META)
    with pytest.raises(
        CheckpointError, match=r"its 'ema' belongs to another model or optimizer:\n  missing params/head"
    ):
        restore(tmp_path / "last" / "1", abstract({"ema": trees()["ema"]}))


def test_a_long_list_of_mismatches_is_shortened(saved):
    wanted = {"model": {"params": {f"layer{i}": jnp.zeros(1) for i in range(40)}}}
    with pytest.raises(CheckpointError) as caught:
        restore(last(saved, 2), abstract(wanted))
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert re.fullmatch(r"  … and \d+ more", lines[-1])


# ---- Folders that cannot be written ---------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/file/last: the checkpoint could not be written"):
        save(tmp_path / "file" / "last", 1)


def test_a_folder_that_disappears_is_reported(tmp_path):
    folder = tmp_path / "last"
    before = threading.enumerate()
    series = Checkpoints(folder, 2)
    shutil.rmtree(folder)
    folder.write_text("not a folder")

    def write():
        with series:
            series.save(1, trees(), META)

    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f"^{folder}: the checkpoint could not be written .*free some space"):
        write()
    # No thread of orbax stays behind: it would wait for five minutes and keep the process alive.
    assert time.monotonic() - start < 60
    assert not [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_reported_and_the_earlier_checkpoint_is_intact(small_disk, caplog):
    folder = save(small_disk / "last", 1)
    large = {"model": {"params": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(1024, 1024)))}}}

    def write():
        with Checkpoints(folder, 2) as series:
            series.save(2, large, META)

    with pytest.raises(
        CheckpointError, match=f"^{folder}: the checkpoint could not be written .*No space left.*free some space"
    ):
        write()
    # The message is the only one: orbax would log a traceback for each of its threads.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert find(folder) == folder / "1"
    assert_equal(restore(folder / "1", abstract(trees(1))), trees(1))


# ---- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["[lr=0.01]", "a*b", "a**b", "a?b", "x[1", "100%#ü{1,2}"])
def test_a_folder_may_have_any_name(tmp_path, name):
    decoy = tmp_path / "a-b" / "last" / "1" / "model" / "ocdbt.process_9"  # `a*b` would match it
    decoy.mkdir(parents=True)
    folder = save(tmp_path / name / "last", 1)
    assert_equal(restore(folder / "1", abstract(trees(1))), trees(1))
    assert read_meta(folder / "1") == META | {"step": 1}


def test_a_save_that_cannot_be_read_back_is_not_sealed(tmp_path, monkeypatch):
    # What orbax did to a save in a folder such as `[lr=0.01]`: it found none of the parts to merge.
    monkeypatch.setattr(type(epath.Path("/")), "glob", lambda *_: iter(()))
    with pytest.raises(CheckpointError, match=r"of 8 arrays in .*/last/1/model, 0 can be read back"):
        save(tmp_path / "last", 1)
    assert checkpoint.complete_steps(tmp_path / "last") == []


def test_a_copy_at_the_root_of_a_mount_belongs_to_no_run():
    for path in ("/model", "/", "/a/model"):
        assert checkpoint.run_of(pathlib.Path(path)) is None
    assert checkpoint.run_of(pathlib.Path("/run/checkpoints/best/3")) == pathlib.Path("/run")


KEPT = ["42_backup", "copy_1", "keep_for_paper", "1_1", "00003", "²", "copy.orbax-checkpoint-tmp", ".hidden"]


def test_folders_of_the_user_are_left_alone(copy):
    folder = checkpoint.series(copy, LAST)
    for name in KEPT:
        shutil.copytree(last(copy, 1), folder / name, ignore=shutil.ignore_patterns(MANIFEST))
    for name in ("3.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-17", ".probe-abc"):
        (folder / name).mkdir()
    with Checkpoints(folder, 2) as series:
        series.discard_incomplete()
        assert series.steps() == [1, 2]
        series.save(3, trees(3), META)
        series.save(4, trees(4), META)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*KEPT, "3", "4"])


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_of_the_user_that_is_named_like_a_checkpoint_is_reported(copy, tmp_path, kind):
    folder = checkpoint.series(copy, LAST)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    if kind == "folder":
        shutil.copytree(tmp_path / "mine", folder / "99")
    else:
        (folder / "99").symlink_to(tmp_path / "mine")
    with (
        Checkpoints(folder, 2) as series,
        pytest.raises(CheckpointError, match=f"^{folder}/99: named like a checkpoint of this run"),
    ):
        series.discard_incomplete()
    assert (folder / "99" / "notes.txt").read_text() == "mine"
    assert checkpoint.complete_steps(folder) == [1, 2]


def test_each_series_has_barriers_of_its_own(tmp_path, monkeypatch):
    """Both series save at the same time, and orbax's names of barriers are the same for each save."""
    prefixes = []

    def manager(folder, options):
        prefixes.append(options.multiprocessing_options.barrier_sync_key_prefix)

    monkeypatch.setattr(checkpoint.compat, "CheckpointManager", manager)
    for name in (LAST, BEST):
        Checkpoints(checkpoint.series(tmp_path, name), 1)
    assert prefixes == ["last", "best"]


def test_a_save_does_not_ask_whether_the_run_is_preempted(tmp_path, monkeypatch):
    """The answer depends on the number of calls, so that a call with another number could miss the signal."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    with Checkpoints(tmp_path / "last", 1) as series:
        series.save(1, trees(), {})
    assert not asked
