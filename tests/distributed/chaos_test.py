"""A run that is killed at bad moments ends like one that was never disturbed. The long form is benchmarks/chaos.py."""

import pathlib

import numpy as np
import pytest

from tests.helpers.chaos import MOMENTS, Chaos, chaos, leftovers
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.devices]
FIELDS = ("--config.train.epochs=10",)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    Processes(workdir, images, 1, 2, *FIELDS).finish()
    return workdir


def assert_no_image_is_lost(result: Chaos) -> None:
    stream, images = result.stream()
    epochs = [stream[i : i + images] for i in range(0, len(stream) - images + 1, images)]
    assert len(epochs) > 5
    for epoch in epochs:
        assert sorted(epoch) == sorted(epochs[0])
        assert len(set(epoch)) == images
    assert leftovers(result.workdir) == []


def test_on_the_same_devices_it_ends_bitwise_the_same(
    images: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = chaos(tmp_path, images, MOMENTS, [(1, 2)], 1, *FIELDS, report=print)
    assert len({step for _, step in result.kills}) > 2
    assert_no_image_is_lost(result)
    assert_same_run(result.workdir, undisturbed)


def test_on_changing_devices_and_processes_it_ends_the_same(
    images: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    moments = ("preparation", "checkpoint", "step", "evaluation")
    result = chaos(tmp_path, images, moments, [(1, 2), (2, 1), (2, 2), (1, 4)], 2, *FIELDS, report=print)
    assert len({step for _, step in result.kills}) > 2
    assert_no_image_is_lost(result)
    for series in ("last", "best"):
        theirs, ours = arrays(undisturbed, series), arrays(result.workdir, series)
        assert theirs.keys() == ours.keys()
        for path, value in theirs.items():
            np.testing.assert_allclose(ours[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
