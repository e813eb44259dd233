"""Fixtures that the tests of inference share."""

import pathlib
from collections.abc import Iterator

import jax
import pytest

from tests.helpers.programs import small_ldcsf_run


@pytest.fixture(scope="session")
def ldcsf_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny multi-label LDCSF, trained by the program; its images lie in `tiles` beside it. Do not write into it."""
    return small_ldcsf_run(tmp_path_factory.mktemp("ldcsf"))


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Skip most optimizations: most of the time would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
