"""Fixtures for tests of the training step."""

from collections.abc import Iterator

import jax
import pytest

from histojax.distributed.sharding import Layout
from histojax.training.program import Program
from tests.helpers.step_models import Normed, cached_program, devices


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of the programs compiled since the test began, or since the list was cleared."""
    names: list[str] = []

    def listen(event: str, _: float, **facts: object) -> None:
        if "backend_compile" in event:
            names.append(str(facts.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def single() -> Layout:
    """A single device."""
    return devices(1)


@pytest.fixture(scope="module")
def normed(single: Layout) -> Program:
    """A program whose model has batch statistics, on a single device."""
    return cached_program(Normed, layout=single)
