"""Mesh and shardings on four fake devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from histojax.core.errors import RunError
from histojax.distributed.sharding import Layout

pytestmark = pytest.mark.devices


@pytest.fixture(autouse=True)
def _four_devices():
    assert jax.device_count() == 4, "conftest.py requests four"


@pytest.mark.parametrize("fsdp", [3, 8, 0, -1])
def test_fsdp_must_divide_the_devices(fsdp):
    with pytest.raises(RunError, match=rf"sharding\.fsdp={fsdp} does not divide the 4 devices"):
        Layout(fsdp)


def test_a_layout_may_take_some_of_the_devices():
    layout = Layout(2, jax.devices()[2:])
    assert dict(layout.mesh.shape) == {"data": 1, "fsdp": 2}
    assert layout.batch.device_set == set(jax.devices()[2:])
    with pytest.raises(RunError, match=r"sharding\.fsdp=2 does not divide the 1 devices"):
        Layout(2, jax.devices()[:1])


@pytest.mark.parametrize("size", [4, 8, 32])
def test_a_batch_that_divides_is_accepted(size):
    Layout().check_batch("train.batch_size", size)
    Layout(2).check_batch("train.batch_size", size)
    Layout(2).check_batch("train.batch_size", 2 * size, parts=2)


@pytest.mark.parametrize(
    ("size", "parts", "message"),
    [
        (6, 1, "train.batch_size=6 does not divide among 4 devices; use 4 or 8"),
        (33, 1, "train.batch_size=33 does not divide among 4 devices; use 32 or 36"),
        (12, 2, "train.batch_size=12 does not divide among 4 devices × 2 micro-batches; use 8 or 16"),
        (4, 2, "train.batch_size=4 does not divide among 4 devices × 2 micro-batches; use 8"),
        (3, 1, "train.batch_size=3 does not divide among 4 devices; use 4"),
        (0, 1, "train.batch_size=0 does not divide among 4 devices; use 4"),
        (-5, 1, "train.batch_size=-5 does not divide among 4 devices; use 4"),
    ],
)
def test_the_error_for_a_batch_that_does_not_divide_names_the_nearest_sizes(size, parts, message):
    with pytest.raises(RunError) as caught:
        Layout().check_batch("train.batch_size", size, parts)
    assert str(caught.value) == message


def abstract():
    shapes = {
        "kernel": (3, 3, 4, 8),
        "wide": (6, 2),
        "odd in front": (7, 4),
        "odd": (3, 5),
        "bias": (10,),
        "scalar": (),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    # Eight keys would divide, but sharding them gains nothing, and sharded keys do not support every operation.
    return tree | {"keys": jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))}


def test_fsdp_shards_the_largest_axis_that_divides():
    layout = Layout(2)
    shardings = layout.state(abstract())
    assert {name: sharding.spec for name, sharding in shardings.items()} == {
        "kernel": P(None, None, None, "fsdp"),
        "wide": P("fsdp"),
        "odd in front": P(None, "fsdp"),
        "odd": P(),
        "bias": P("fsdp"),
        "scalar": P(),
        "keys": P(),
    }
    kernel = jax.jit(lambda: jnp.zeros((3, 3, 4, 8)), out_shardings=shardings["kernel"])()
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 4, 4)}


def test_without_fsdp_everything_is_replicated():
    assert {sharding.spec for sharding in Layout().state(abstract()).values()} == {P()}


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_to_device_divides_the_batch_among_all_devices_and_drops_the_index(fsdp):
    layout = Layout(fsdp)
    images = np.arange(8 * 2 * 2 * 3, dtype=np.uint8).reshape(8, 2, 2, 3)
    batch = {"image": images, "mask": np.ones(8, bool), "index": np.arange(8, dtype=np.int64)}
    got = layout.to_device(batch)
    assert set(got) == {"image", "mask"}
    np.testing.assert_array_equal(got["image"], images)
    assert (got["image"].dtype, got["mask"].dtype) == (np.uint8, np.bool_)
    assert got["image"].sharding == layout.batch
    assert [shard.data.shape[0] for shard in got["image"].addressable_shards] == [2, 2, 2, 2]


@pytest.mark.parametrize(("flags", "expected"), [("", "3"), ("--xla_force_host_platform_device_count=2", "2")])
def test_virtual_devices_unless_the_environment_sets_their_number(flags, expected):
    # In a new process, because it must run before the first computation.
    program = (
        "import jax; from histojax.distributed import sharding; sharding.use_cpu_devices(3); print(jax.device_count())"
    )
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == expected


def test_rules_override_the_axis_of_arrays_by_path():
    tree = {"head": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    tree |= {
        "body": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((8,), jnp.float32)}
    }
    found = Layout(2, rules=("head/kernel=1", "bias$=none", "kernel=0")).state(tree)
    assert found["head"]["kernel"].spec == P(None, "fsdp")
    assert found["body"]["kernel"].spec == P("fsdp")
    assert found["body"]["bias"].spec == P()
    # Without FSDP, rules have no effect.
    assert Layout(1, rules=("head/kernel=1",)).state(tree)["head"]["kernel"].spec == P()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("head", r"sharding\.rules: 'head' is not REGEX=AXIS or REGEX=none"),
        ("head=one", "'head=one' is not REGEX=AXIS"),
        ("(=1", "is not a regular expression"),
        (
            "kernel=2",
            r"'kernel=2' matches head/kernel of shape \(8, 4\), but sharding\.fsdp=2 divides only its axes \[0, 1\]",
        ),
    ],
)
def test_an_invalid_rule_is_rejected(rule, message):
    tree = {"head": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    with pytest.raises(RunError, match=message):
        Layout(2, rules=(rule,)).state(tree)
