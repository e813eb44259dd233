"""A fixture of tests that analyze many slides."""

import pytest

from tests.helpers import colour_slide_model


@pytest.fixture
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the pictures of slides with few pixels."""
    colour_slide_model.coarse_pictures(monkeypatch)
