"""The program as a process: start it, stop it, and read its output."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from data_pipelines.synthetic.tiles import TilesSyntheticSpec, generate_tiles
from tests.conftest import ROOT
from tests.helpers import warm_start


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)


def last_logged_step(workdir: pathlib.Path) -> int:
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (OSError, json.JSONDecodeError):
        return 0


def arrays(workdir: pathlib.Path, series: str) -> dict[str, np.ndarray]:
    """Return all arrays of the newest checkpoint of a series, by path."""
    newest = max(
        (p for p in (workdir / "checkpoints" / series).iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    found = {}
    for item in ("model", "train") if series == "last" else ("model",):
        with ocp.PyTreeCheckpointer() as reader:
            # Restored to the host, because the run may have had other devices.
            stored = reader.metadata(newest / item).item_metadata.tree
            to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            tree = reader.restore(newest / item, restore_args=to_host)
        for path, leaf in ocp.utils.to_flat_dict(tree, sep="/").items():
            is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
            found[f"{newest.name}/{item}/{path}"] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return found


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Assert that two work directories hold bitwise the same checkpoints, and the same curves and predictions."""
    for series in ("last", "best"):
        theirs, ours = arrays(one, series), arrays(other, series)
        assert len(theirs) > 10
        assert theirs.keys() == ours.keys()
        for path, value in theirs.items():
            assert value.tobytes() == ours[path].tobytes(), path
    strip = ("train/images_per_second", "train/input_wait")
    curves = [
        [
            {k: v for k, v in json.loads(line).items() if k not in strip}
            for line in (run_ / "metrics.jsonl").read_text().splitlines()
        ]
        for run_ in (one, other)
    ]
    assert curves[0] == curves[1]
    pd.testing.assert_frame_equal(
        pd.read_parquet(one / "predictions.parquet"), pd.read_parquet(other / "predictions.parquet")
    )


def small_ldcsf_run(folder: pathlib.Path, **fields: object) -> pathlib.Path:
    """Train a tiny LDCSF for two epochs on synthetic tiles of 48 pixels at 0.5 µm/px; return its work directory."""
    root = generate_tiles(folder / "tiles", TilesSyntheticSpec(patients=10, tiles_per_slide=6, size=48))
    small = {"model.options.depths": "(1, 1, 1)", "model.options.resnet_blocks": 1, "model.options.embed_dim": 24}
    small |= {"model.options.heads": "(1, 2, 3)", "data.root": root, "data.image_size": 32, "data.mpp": 0.5}
    small |= {"train.batch_size": 16, "train.epochs": 2, "train.ema_decay": 0.0, "evaluation.resamples": 50}
    flags = [f"--config.{key}={value}" for key, value in (small | fields).items()]
    workdir = folder / "run"
    config = "configs/ldcsf_liver.py:smoke"
    done = warm_start.run([sys.executable, "-m", "histojax.main", f"--config={config}", f"--workdir={workdir}", *flags])
    assert done.returncode == 0, done.stderr
    return workdir
