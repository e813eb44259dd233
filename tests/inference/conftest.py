"""Fixtures that the tests of inference share."""

import pathlib

import pytest

from tests.helpers.programs import small_ldcsf_run


@pytest.fixture(scope="session")
def ldcsf_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny multi-label LDCSF, trained by the program; its images lie in `tiles` beside it. Do not write into it."""
    return small_ldcsf_run(tmp_path_factory.mktemp("ldcsf"))
