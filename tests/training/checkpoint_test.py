"""Checkpoints through real orbax: bit for bit back, and in words when they are damaged, cut short or another's."""

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
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.training import checkpoint
from histojax.training.checkpoint import BEST, FORMAT, LAST, CheckpointError, Checkpoints, find, read_meta, restore

META = {"format": FORMAT, "classes": ["benign", "malignant"], "watch": {"best": None, "best_step": 0}, "ratio": 0.1}
MANIFEST = "sha256.json"


def trees(seed=0, features=4):
    """Named trees as a run has them: int keys, optax's tuples, typed random keys, scalars, narrow types."""
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
    """A work directory with the last steps 1, 2 and the best step 1; to be copied before it is damaged."""
    workdir = tmp_path_factory.mktemp("run")
    save(checkpoint.series(workdir, LAST), 1, 2)
    save(checkpoint.series(workdir, BEST), 1)
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def last(workdir, step) -> pathlib.Path:
    return checkpoint.series(workdir, LAST) / str(step)


def test_what_another_version_wrote_is_refused_in_words(tmp_path):
    with Checkpoints(checkpoint.series(tmp_path, LAST), 2) as series:
        series.save(1, trees(), META | {"format": 1})
    with pytest.raises(CheckpointError, match=r"another version of histojax \(format 1, this one reads 2\): use that"):
        read_meta(last(tmp_path, 1))


# ---- There and back -------------------------------------------------------------------------------------------------


def test_all_comes_back_bit_for_bit(saved):
    expected = trees(2)
    got = restore(last(saved, 2), abstract(expected))
    assert_equal(got, expected)
    # A restored key draws what the saved one would have drawn.
    assert jax.random.bits(got["train"]["key"]) == jax.random.bits(expected["train"]["key"])
    assert read_meta(last(saved, 2)) == META | {"step": 2}


@pytest.mark.parametrize("names", [("model",), ("ema",), ("model", "train")])
def test_trees_may_be_left_out(saved, names):
    expected = {name: trees(1)[name] for name in names}
    assert_equal(restore(last(saved, 1), abstract(expected)), expected)


@pytest.mark.devices
def test_saved_in_shards_and_restored_whole_and_back(tmp_path):
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


def test_only_the_newest_are_kept(tmp_path):
    folder = save(tmp_path / "last", 1, 2, 3, 4, keep=2)
    with Checkpoints(folder, 2) as series:
        assert series.steps() == [3, 4]
        series.save(10, trees(), META)
        series.wait()
        assert series.steps() == [4, 10]  # by number, not by name
    assert sorted(path.name for path in folder.iterdir()) == ["10", "4"]


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
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


def test_a_save_under_way_is_finished_when_the_run_fails(tmp_path):
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


def test_finding_nothing_says_what_to_name(tmp_path):
    for path, fact in ((tmp_path, "has no checkpoint that is complete"), (tmp_path / "no", "does not exist")):
        with pytest.raises(CheckpointError, match=f"^{path} {fact}; name a work directory"):
            find(path)


# ---- Cut short ------------------------------------------------------------------------------------------------------


def cut(workdir, step):
    (last(workdir, step) / MANIFEST).unlink()


def test_a_save_without_checksums_is_ignored_and_deleted(copy, caplog):
    cut(copy, 2)
    folder = checkpoint.series(copy, LAST)
    with caplog.at_level(logging.WARNING):
        assert find(folder) == last(copy, 1)
    assert [r.getMessage() for r in caplog.records] == [f"{last(copy, 2)}: this save was cut short; ignored"]
    caplog.clear()
    with Checkpoints(folder, 2) as series:
        assert series.steps() == [1]
        assert last(copy, 2).is_dir()
        with caplog.at_level(logging.WARNING, logger="histojax"):
            series.discard_incomplete()
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("histojax")]
        assert ours == [f"{last(copy, 2)}: this save was cut short; ignored and deleted"]
        assert not last(copy, 2).exists()
        # And the run that comes here again saves it anew.
        series.save(2, trees(2), META)
    assert_equal(restore(find(folder), abstract(trees(2))), trees(2))


def test_what_orbax_leaves_of_a_killed_save_is_ignored_and_discarded(copy, caplog):
    folder = checkpoint.series(copy, LAST)
    left = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(last(copy, 2), left, ignore=shutil.ignore_patterns(MANIFEST, "_CHECKPOINT_METADATA"))
    assert find(folder) == last(copy, 2)
    with Checkpoints(folder, 2) as series:
        assert series.steps() == [1, 2]
        with caplog.at_level(logging.WARNING, logger="histojax"):
            series.discard_incomplete()
        assert f"{left}: this save was cut short; ignored and deleted" in caplog.text
        assert not left.exists()
        series.save(3, trees(3), META)
    assert find(folder) == last(copy, 3)


def test_with_nothing_cut_short_nothing_is_discarded(copy, caplog):
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
    for step, remedy in ((2, "go on from step 1"), (1, "start anew")):
        folder = last(copy, step)
        name, path = next((name, path) for name, path in files_of(folder).items() if KINDS[kind](name))
        damage(path, how)
        with pytest.raises(CheckpointError) as caught:
            restore(folder, abstract({"model": trees()["model"]}))
        message = str(caught.value)
        assert message.startswith(f"{folder}: the file {name} {DAMAGES[how]}"), message
        assert message.endswith(f"Restore the folder from a copy, or delete it to {remedy}."), message


def test_every_file_is_guarded(saved):
    # What the kinds above do not sample: no file is left out of the checksums.
    recorded = json.loads((last(saved, 2) / MANIFEST).read_text())
    assert recorded.keys() == files_of(last(saved, 2)).keys()
    for kind, matches in KINDS.items():
        assert any(matches(name) for name in recorded), kind


@pytest.mark.parametrize("how", ["cut in half", "empty"])
def test_damaged_checksums_are_told_too(copy, how):
    damage(last(copy, 2) / MANIFEST, how)
    with pytest.raises(CheckpointError, match=f"^{last(copy, 2)}: the file {MANIFEST} is damaged.*go on from step 1"):
        restore(last(copy, 2), abstract({"model": trees()["model"]}))


def test_a_damaged_checkpoint_under_another_name_is_told_too(copy, tmp_path):
    elsewhere = shutil.copytree(last(copy, 2), tmp_path / "my-model")
    assert find(elsewhere) == elsewhere
    assert_equal(restore(elsewhere, abstract(trees(2))), trees(2))
    damage(next(path for name, path in files_of(elsewhere).items() if KINDS["data"](name)), "flipped byte")
    with pytest.raises(CheckpointError, match=f"^{elsewhere}: the file .* is damaged"):
        restore(elsewhere, abstract(trees(2)))


def test_a_file_more_does_no_harm(copy):
    (last(copy, 2) / ".DS_Store").write_bytes(b"x")
    assert_equal(restore(last(copy, 2), abstract(trees(2))), trees(2))


@pytest.mark.parametrize("how", ["flipped byte", "cut in half", "empty", "deleted"])
def test_damaged_facts_are_not_read(copy, how):
    damage(next(path for name, path in files_of(last(copy, 2)).items() if KINDS["meta"](name)), how)
    with pytest.raises(CheckpointError, match=f"^{last(copy, 2)}: "):
        read_meta(last(copy, 2))


@pytest.mark.parametrize("content", [None, {"a.txt": "x"}, {"meta/metadata": "[]"}])
def test_a_foreign_folder_is_no_checkpoint(tmp_path, content):
    folder = tmp_path / "foreign"
    for name, text in (content or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"^{folder}: cannot be read as a histojax checkpoint"):
        read_meta(folder)
    with pytest.raises(CheckpointError, match=f"^{folder}: "):
        restore(folder, abstract({"model": trees()["model"]}))


# ---- Of another model -----------------------------------------------------------------------------------------------


def test_every_array_that_does_not_fit_is_named_at_once(saved):
    wanted = trees(2)["model"]
    params = nnx.to_pure_dict(wanted["params"])
    params["layer1"][2] = params["layer1"].pop(1)
    params["layer1"][0]["kernel"] = jnp.zeros((8, 6))
    wanted["params"] = nnx.State(params)
    with pytest.raises(CheckpointError) as caught:
        restore(last(saved, 2), abstract({"model": wanted}))
    first, *problems = str(caught.value).splitlines()
    assert first == f"{last(saved, 2)}: its 'model' is of another model or optimizer:"
    assert sorted(line.strip() for line in problems) == [
        "missing params/layer1/2/bias (4,)",
        "missing params/layer1/2/kernel (8, 4)",
        "params/layer1/0/kernel is (8, 4), the model has (8, 6)",
        "unexpected params/layer1/1/bias (4,)",
        "unexpected params/layer1/1/kernel (8, 4)",
    ]


def test_another_optimizer_is_told(saved):
    wanted = trees(2)["train"]
    wanted["opt"] = optax.sgd(0.1, momentum=0.9).init(trees(2)["model"]["params"])
    with pytest.raises(CheckpointError, match=r"its 'train' is of another model or optimizer:\n  missing opt/"):
        restore(last(saved, 2), abstract({"train": wanted}))


def test_a_tree_that_was_not_saved_is_told(tmp_path):
    with Checkpoints(tmp_path / "last", 1) as series:
        series.save(1, {"model": trees()["model"]}, META)
    with pytest.raises(CheckpointError, match=r"its 'ema' is of another model or optimizer:\n  missing params/head"):
        restore(tmp_path / "last" / "1", abstract({"ema": trees()["ema"]}))


def test_a_long_list_is_cut(saved):
    wanted = {"model": {"params": {f"layer{i}": jnp.zeros(1) for i in range(40)}}}
    with pytest.raises(CheckpointError) as caught:
        restore(last(saved, 2), abstract(wanted))
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert re.fullmatch(r"  … and \d+ more", lines[-1])


# ---- Where nothing can be written -----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/file/last: the checkpoint could not be written"):
        save(tmp_path / "file" / "last", 1)


def test_a_folder_that_is_taken_away_is_told(tmp_path):
    folder = tmp_path / "last"
    before = threading.enumerate()
    series = Checkpoints(folder, 2)
    shutil.rmtree(folder)
    folder.write_text("not a folder")

    def write():
        with series:
            series.save(1, trees(), META)

    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f"^{folder}: the checkpoint could not be written .*make room or fix"):
        write()
    # No thread of orbax's stays behind: it would wait for five minutes, and the process with it.
    assert time.monotonic() - start < 60
    assert not [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_told_and_the_earlier_checkpoint_is_untouched(small_disk):
    folder = save(small_disk / "last", 1)
    large = {"model": {"params": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(1024, 1024)))}}}

    def write():
        with Checkpoints(folder, 2) as series:
            series.save(2, large, META)

    with pytest.raises(
        CheckpointError, match=f"^{folder}: the checkpoint could not be written .*No space left.*make room"
    ):
        write()
    assert find(folder) == folder / "1"
    assert_equal(restore(folder / "1", abstract(trees(1))), trees(1))
