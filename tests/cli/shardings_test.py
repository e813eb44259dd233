"""FSDP over eight devices: planned sizes for real models, measured sizes for a small one."""

import json
import re
import sys

import pytest

from tests.helpers import warm_start
from tests.helpers.command import histojax
from tests.helpers.programs import run

pytestmark = pytest.mark.devices
TINY = "tests/helpers/tiny_config.py"
# Two updates of the tiny ViT, data-parallel and with FSDP over eight: losses, and what device 0 holds.
EIGHT = """
import json, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from histojax.distributed.sharding import Layout
from histojax.training import build
from histojax.training.tasks import Multiclass
from tests.helpers import tiny_config

config = tiny_config.get_config()
config.model.options.embed_dim = 64
rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), "mask": np.ones(8, bool)}
batch["label"] = rng.integers(0, 2, 8).astype(np.int32)
for fsdp in (1, 8):
    layout = Layout(fsdp)
    made = build.program(config, Multiclass(("a", "b"), (1.0, 1.0)), layout, build.optimizer(config, 10))
    state = made.init()
    leaves = [leaf for leaf in jax.tree.leaves((state.model.params, state.opt, state.ema)) if leaf.dtype == np.float32]
    total = sum(leaf.nbytes for leaf in leaves)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards
               if shard.device == jax.devices()[0])
    losses = []
    for _ in range(2):
        state, metrics = made.train(state, layout.to_device(batch))
        losses.append(float(metrics["loss"]))
    print(json.dumps({"fsdp": fsdp, "total": total, "held": held, "losses": losses}))
"""


CONFIGS = ["dala_resnet50_breakhis", "ldcsf_liver", "baselines_breakhis:vit_base_patch16_224"]


def test_an_eighth_of_parameters_and_optimizer_lies_on_each_of_eight() -> None:
    """In one process, which has eight devices, unlike that of the tests."""
    program = "import sys\nfrom histojax.cli.main import main\nfor name in sys.argv[1:]:\n    " + (
        "main(['shardings', '--config', name, '--devices=8', '--config.sharding.fsdp=8'])"
    )
    done = run([sys.executable, "-c", program, *CONFIGS])
    assert done.returncode == 0, done.stderr
    fractions = re.findall(r"together .* ([\d.]+) × total / 8", done.stdout)
    assert len(fractions) == len(CONFIGS), done.stdout
    assert all(1 <= float(fraction) <= 1.15 for fraction in fractions), fractions
    assert done.stdout.count("·, fsdp") > 100


def test_without_fsdp_all_is_replicated() -> None:
    words = ["shardings", f"--config={TINY}", "--devices=4", "--num_classes=3"]
    done = warm_start.run([sys.executable, "-m", "histojax", *words])
    assert done.returncode == 0, done.stderr
    assert "on 4 devices (data 4, fsdp 1)" in done.stdout
    assert "(32, 3)" in done.stdout
    assert ", fsdp" not in done.stdout.split("\n\n")[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.sharding.fsdp=3"], "sharding.fsdp=3 does not divide the 4 devices"),
        (
            ["--config.sharding.fsdp=2", "--config.sharding.rules=('[=0',)"],
            "error: sharding.rules: '['",
        ),
    ],
)
def test_rules_that_do_not_fit(overrides: list[str], message: str) -> None:
    done = histojax("shardings", f"--config={TINY}", "--devices=4", *overrides)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow
def test_eight_devices_hold_an_eighth_each_and_learn_the_same() -> None:
    done = run([sys.executable, "-c", EIGHT])
    assert done.returncode == 0, done.stderr
    parallel, sharded = (json.loads(line) for line in done.stdout.splitlines())
    assert parallel["held"] == parallel["total"] == sharded["total"]
    assert sharded["held"] <= 1.15 * sharded["total"] / 8
    assert sharded["losses"] == pytest.approx(parallel["losses"], rel=1e-5)
