"""A silenced logger drops messages inside the block only."""

import logging

import pytest

from histojax.core.quiet import quiet_logger


def test_the_level_is_restored_even_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("histojax.core.quiet_test")
    logger.setLevel(logging.INFO)

    def log_and_fail() -> None:
        with quiet_logger(logger.name):
            logger.warning("dropped")
            logger.error("logged inside")
            raise KeyError

    with pytest.raises(KeyError):
        log_and_fail()
    logger.info("logged after")
    assert logger.level == logging.INFO
    assert [record.message for record in caplog.records] == ["logged inside", "logged after"]
