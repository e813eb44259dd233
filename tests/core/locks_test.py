"""The lock of a folder: one holder at a time, released on exit, skipped where nothing can be written."""

import logging
import pathlib
import threading

import pytest

from histojax.core.locks import exclusive_lock


def test_a_second_holder_waits_for_the_first(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive_lock(tmp_path / "data"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with caplog.at_level(logging.INFO, logger="histojax"):
        with exclusive_lock(tmp_path / "data"):
            waiting.start()
            waiting.join(0.2)
            order.append("first")
        waiting.join(10)
    assert order == ["first", "second"]
    assert f"waiting for another process that is preparing data in {tmp_path / 'data'}" in caplog.text


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with exclusive_lock(tmp_path / "file" / "data"):
        pass
