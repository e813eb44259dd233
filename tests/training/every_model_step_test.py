"""A training step of every model: on four devices, data- and parameter-sharded, it is the step on one."""

import jax
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.distributed.sharding import Layout
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Program, StepSpec
from histojax.training.tasks import Multiclass
from tests.helpers.modules import ALSO_IN
from tests.helpers.step_models import devices, random_state

TASK = Multiclass(("a", "b", "c"), (1.0, 0.5, 1.5))
SGD = OptimizerSpec("sgd", 0.01, 100, schedule="constant")
B, K, SIZE = 8, 3, 32


def make_model(name: str, rngs: nnx.Rngs) -> nnx.Module:
    """The model in its small size, with random drops, which must be drawn for the global batch."""
    spec = models.spec(name)
    return models.create(name, num_classes=K, rngs=rngs, **spec.small, **dict.fromkeys(spec.drop_options, 0.3))


@pytest.mark.devices
# ldcsf has this test, over three steps with several labels, in ldcsf_step_test.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models.names()) - set(ALSO_IN) - {"ldcsf"}))
def test_four_devices_take_the_step_of_one(name: str) -> None:
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, K, B).astype(np.int32),
        "mask": np.array([True] * (B - 1) + [False]),
    }
    spec = StepSpec((0.5,) * 3, (0.2,) * 3)

    def program(layout: Layout) -> Program:
        return Program(lambda rngs: make_model(name, rngs), TASK, SGD, spec, layout)

    one, four = program(devices(1)), program(devices(4, fsdp=2))
    expected, expected_metrics = one.train(random_state(one), devices(1).to_device(batch))
    state, metrics = four.train(random_state(four), devices(4, fsdp=2).to_device(batch))
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.model.params)}
    assert any("fsdp" in spec for spec in specs), specs
    assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-4)
    assert float(metrics["grad_norm"]) == pytest.approx(float(expected_metrics["grad_norm"]), rel=1e-3)
    for actual, desired in ((state.model.params, expected.model.params), (state.model.stats, expected.model.stats)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, desired)
