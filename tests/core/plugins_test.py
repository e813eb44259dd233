"""Modules of the user and installed packages: what a registry takes, finds and refuses."""

import dataclasses
import logging
import pathlib
import sys
from importlib import metadata

import pytest

from histojax.core import plugins
from histojax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class Stain:
    name: str


@pytest.fixture
def stains() -> plugins.Registry[Stain]:
    return plugins.Registry(Stain, "stain", "histojax.stains", reserved=("eosin",))


def test_what_is_registered_is_found(stains: plugins.Registry[Stain]) -> None:
    blue = stains.register(Stain("hematoxylin"))
    assert stains.register(blue) is blue
    assert stains.find("hematoxylin") is blue
    assert stains.names() == ("hematoxylin",)
    with pytest.raises(ValueError, match=r"unknown stain 'hematoxilin' \(did you mean 'hematoxylin'\?\); stains: hema"):
        stains.find("hematoxilin")


def test_what_a_registry_refuses(stains: plugins.Registry[Stain]) -> None:
    stains.register(Stain("dab"))
    for name in ("dab", "eosin"):
        with pytest.raises(ValueError, match=f"a stain named '{name}' is already registered; choose another name"):
            stains.register(Stain(name))
    with pytest.raises(ValueError, match=r"<function .*> is no stain: register a .*\.Stain"):
        stains.register(test_what_a_registry_refuses)  # type: ignore[arg-type]


def test_installed_packages_provide_one_thing_or_several_and_a_broken_one_is_left_out(
    stains: plugins.Registry[Stain], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclasses.dataclass
    class Point:
        name: str
        content: object

        def load(self) -> object:
            if isinstance(self.content, Exception):
                raise self.content
            return self.content

    points = [
        Point("one", Stain("pas")),
        Point("bad", ImportError("no module")),
        Point("two", [Stain("mt"), Stain("c")]),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "histojax.stains" else [])
    with caplog.at_level(logging.WARNING, "histojax"):
        assert stains.names() == ("pas", "mt", "c")
        stains.names()
    assert [record.getMessage() for record in caplog.records] == [
        "entry point bad of histojax.stains is left out: no module"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my/stains.py", "plugins: 'my/stains.py' is not the name of a Python module"),
        ("no_stains", r"plugins: 'no_stains' cannot be imported .* add its folder to PYTHONPATH"),
        ("bad_stains", r"plugins: importing 'bad_stains' failed: .*bad_stains\.py:2: KeyError: 'x'"),
        ("good_stains", ""),
    ],
)
def test_modules_are_imported_or_refused_by_name(
    name: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good_stains.py").write_text("")
    (tmp_path / "bad_stains.py").write_text("values = {}\nvalues['x']\n")
    monkeypatch.syspath_prepend(tmp_path)
    if not message:
        plugins.load((name,))
        assert sys.modules.pop(name)
        return
    with pytest.raises(RunError, match=message):
        plugins.load((name,))
