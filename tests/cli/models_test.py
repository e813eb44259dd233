"""`histojax models` lists every model with its size and feature maps, and measures them only once."""

import pathlib

import pytest

from histojax import models
from histojax.cli import model_list
from histojax.models import cost
from tests.helpers.command import histojax


def blocks_of(text: str) -> dict[str, str]:
    """Return each model's line, joined with the lines that continue its cells."""
    blocks: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name = line.split()[0] if not line.startswith(" ") else list(blocks)[-1]
        blocks[name] = blocks.get(name, "") + line
    return blocks


def test_sizes_and_feature_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "names", lambda: ("swin_tiny_patch4_window7_224",))
    swin = blocks_of(model_list.table())["swin_tiny_patch4_window7_224"]
    assert "28.29" in swin
    assert all(name in swin for name in ("stage1", "stage2", "stage3", "stage4"))


def test_every_model_is_listed_in_120_columns_and_measured_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(name: str, *_: object) -> cost.Size:
        measured.append(name)
        return cost.Size(123_456_789, 1e11, {f"inception{i}": (7, 7, 512) for i in range(1, 6)})

    monkeypatch.setattr(cost, "measure", measure)
    monkeypatch.setenv("HISTOJAX_DATA", str(tmp_path / "data"))
    first = histojax("models")
    assert first.returncode == 0, first.stderr
    assert list(blocks_of(first.stdout)) == measured == list(models.names())
    assert max(map(len, first.stdout.splitlines())) <= 120
    assert histojax("models").stdout == first.stdout
    assert len(measured) == len(models.names())
    monkeypatch.setattr(model_list, "_sources_hash", lambda: "another version")
    assert histojax("models").stdout == first.stdout
    assert len(measured) == 2 * len(models.names())


def test_a_user_without_a_home_directory_sees_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOJAX_DATA")
    monkeypatch.setattr(pathlib.Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(model_list, "table", lambda: "the table")
    assert histojax("models").stdout == "the table\n"
