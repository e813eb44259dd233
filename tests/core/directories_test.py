"""Folders of the user, also of a user without a home directory."""

import pathlib

import pytest

from histojax.core.directories import default_directory, expand_user
from histojax.core.errors import RunError


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs under a number without a name."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 123456)


def test_the_default_directory_is_that_of_the_environment_or_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("HISTOJAX_DATA", "~/data")
    assert default_directory() == pathlib.Path("/home/someone/data")
    monkeypatch.delenv("HISTOJAX_DATA")
    assert default_directory() == pathlib.Path("/home/someone/.cache/histojax")


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOJAX_DATA", raising=False)
    with pytest.raises(RunError, match="no home directory: set HISTOJAX_DATA"):
        default_directory()
    monkeypatch.setenv("HISTOJAX_DATA", "/data")
    assert default_directory() == pathlib.Path("/data")


@pytest.mark.parametrize("path", ["~/run", "~no-such-user/run"])
def test_a_home_that_is_not_known_is_named(
    path: str, tmp_path: pathlib.Path, no_home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=f"^{path}: the home directory is not known; write the whole path"):
        expand_user(path)
    assert expand_user("runs/~a") == pathlib.Path("runs/~a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~slide.svs").write_text("")
    assert expand_user("~slide.svs") == pathlib.Path("~slide.svs")
