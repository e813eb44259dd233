"""Weights in several files with an index: read as one file, from the disk and from the hub, with every damage named."""

import json
import pathlib

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy

from histojax import weights
from histojax.core.errors import RunError
from histojax.weights import WeightsError, hub

ARRAYS = {f"layer{i}.weight": np.full((2, i + 1), i, np.float32) for i in range(3)}


def write(folder: pathlib.Path) -> pathlib.Path:
    """Two files of weights and their index."""
    files = {
        "model-1-of-2.safetensors": ["layer0.weight"],
        "model-2-of-2.safetensors": ["layer1.weight", "layer2.weight"],
    }
    for file, names in files.items():
        safetensors.numpy.save_file({name: ARRAYS[name] for name in names}, folder / file)
    return write_index(folder, {name: file for file, names in files.items() for name in names})


def write_index(folder: pathlib.Path, weight_map: object) -> pathlib.Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def test_all_files_of_an_index_are_read(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path)
    read = weights.read(path)
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
    digest = weights.sha256(path)
    safetensors.numpy.save_file({"layer0.weight": ARRAYS["layer0.weight"] + 1}, tmp_path / "model-1-of-2.safetensors")
    assert weights.sha256(path) != digest


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "it has no `weight_map`"),
        ({"a": "../w.safetensors"}, r"it names the file \.\./w\.safetensors, which is not a file beside it"),
        ({"a": "other.index.json"}, "which is not a file beside it"),
        ({"a": "missing.safetensors"}, r"missing\.safetensors does not exist"),
        ({"a": "model-1-of-2.safetensors"}, r"model-1-of-2\.safetensors lacks a, which the index names"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: pathlib.Path, weight_map: object, message: str) -> None:
    write(tmp_path)
    with pytest.raises(WeightsError, match=message):
        weights.read(write_index(tmp_path, weight_map))
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(WeightsError, match="no JSON"):
        weights.read(tmp_path / "model.safetensors.index.json")


class Hub:
    """Takes the place of the hub: files of a folder, and what was asked for."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)

    def download(self, repository: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        assert (repository, local_files_only) == ("lab/vit", False)
        self.asked.append((file, revision))
        if not (self.folder / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return str(self.folder / file)


def test_the_files_of_an_index_are_downloaded_from_a_revision(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, fake = write(tmp_path), Hub(tmp_path, monkeypatch)
    assert hub.locate("hf:lab/vit@v2") == index
    wanted = ["model.safetensors", index.name, "model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    assert fake.asked == [(name, "v2") for name in wanted]
    assert hub.locate("hf:lab/vit@v2/model-1-of-2.safetensors").name == "model-1-of-2.safetensors"
    assert fake.asked[4:] == [("model-1-of-2.safetensors", "v2")]
    with pytest.raises(RunError, match=r"hf:lab/vit/other.pth: other.pth could not be downloaded"):
        hub.locate("hf:lab/vit/other.pth")
    assert fake.asked[5:] == [("other.pth", None)]
    with pytest.raises(RunError, match="with @REVISION after NAME"):
        hub.locate("hf:lab/vit@")
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(RunError, match=r"model-2-of-2\.safetensors could not be downloaded"):
        hub.locate("hf:lab/vit")
