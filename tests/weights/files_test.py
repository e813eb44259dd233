"""Files written by torch.save, safetensors and numpy, read without PyTorch."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from histojax import weights
from histojax.weights import WeightsError
from tests.helpers.torch_files import FORMATS, numpy_of, save


def check(read: dict[str, np.ndarray], state: dict[str, torch.Tensor]) -> None:
    assert list(read) == list(state)
    for name, tensor in state.items():
        expected = numpy_of(tensor)
        assert read[name].dtype == expected.dtype, name
        assert read[name].shape == expected.shape, name
        assert read[name].flags.c_contiguous, name
        assert read[name].tobytes() == expected.tobytes(), name


def plain_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "single": torch.randn(3, 2, 2),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(2, 5).bfloat16(),
        "double": torch.randn(4).double(),
        "long": torch.arange(5),
        "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "base": base,
        "row": base[2],
        "column": base[:, 1],
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "alias": base,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_tensors_of_every_type_and_every_view(tmp_path, write, suffix):
    state = plain_state()
    path = save(tmp_path / f"w{suffix}", state, write)
    check(weights.read(path), state)


def test_types_that_only_the_zip_format_has(tmp_path):
    state = {
        "uint16": torch.tensor([1, 65535]).to(torch.uint16),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
        "real": torch.view_as_real(torch.randn(3, dtype=torch.complex64)),
    }
    check(weights.read(save(tmp_path / "w.pt", state)), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol):
    path = tmp_path / "w.pt"
    torch.save(plain_state(), path, pickle_protocol=protocol)
    check(weights.read(path), plain_state())


def test_big_endian_bytes(tmp_path):
    state = {n: t for n, t in plain_state().items() if n in ("single", "bfloat16", "complex", "long", "column")}
    path, swapped = save(tmp_path / "w.pt", state), tmp_path / "swapped.pt"
    widths = {"single": 4, "bfloat16": 2, "long": 8, "complex": 4, "column": 4}
    assert list(widths) == list(state)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(swapped, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if "/data/" in info.filename:
                width = list(widths.values())[int(info.filename.rsplit("/", 1)[1])]
                data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else data)
    check(weights.read(swapped), state)


@pytest.mark.parametrize("write", FORMATS)
def test_a_module_s_state_dict_without_its_counters(tmp_path, write, caplog):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()  # an OrderedDict with `_metadata`
    with caplog.at_level(logging.INFO, "histojax.weights"):
        read = weights.read(save(tmp_path / "w.pth", state, write))
    check(read, OrderedDict((n, t) for n, t in state.items() if "num_batches" not in n))
    assert "1 × num_batches_tracked" in caplog.text


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher", "model_state_dict"])
def test_a_checkpoint_of_a_training_program(tmp_path, write, wrapper):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "arch": "resnet50",
        "best": np.float64(0.5),
        "seen": {1, 2},
        "digest": b"\0\1" * 200,
        "args": argparse.Namespace(lr=0.1, path="x"),
        wrapper: module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cpu"),
        "rng": torch.get_rng_state(),
    }
    del checkpoint["rng"]
    contents = weights.inspect(save(tmp_path / "w.pth", checkpoint, write))
    assert contents.wrapper == wrapper
    check(contents.arrays, module.state_dict())
    for left in ("epoch (int)", "arch (str)", "optimizer (dict)", "args (argparse.Namespace)", "device (torch.device)"):
        assert left in contents.left_out
    assert f"in {wrapper!r}" in str(contents)


def test_several_state_dicts_are_not_guessed_between(tmp_path):
    state = {"a": torch.ones(2)}
    path = save(tmp_path / "w.pth", {"first": state, "second": {"a": torch.zeros(2)}})
    with pytest.raises(WeightsError, match=r"several state dicts.*--prefix=PREFIX.*'first', 'second'"):
        weights.read(path)
    for prefix in ("first", "first.", "first.a"):
        check(weights.read(path, prefix=prefix), state)
    with pytest.raises(WeightsError, match=r"several state dicts.*'first', 'second'"):
        weights.read(path, prefix="third")
    with pytest.raises(WeightsError, match="several state dicts"):
        weights.read(save(tmp_path / "v.pth", {"model": state, "state_dict": state | {"b": state["a"]}}))


def test_the_known_name_is_taken_among_several_and_the_others_are_reported(tmp_path):
    student, teacher = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    path = save(tmp_path / "w.pth", {"student": student, "teacher": teacher, "loss": {"center": torch.ones(1)}})
    contents = weights.inspect(path)
    check(contents.arrays, teacher)
    assert contents.left_out == ("student (dict)", "loss (dict)")
    nested = weights.inspect(save(tmp_path / "n.pth", {"ema": {"model": student}, "step": 1}))
    assert nested.wrapper == "ema.model"


@pytest.mark.parametrize("thing", [torch.ones(2), [torch.ones(2)], {"epoch": 1}, {0: torch.ones(2)}, 3], ids=str)
def test_no_tensors_by_name(tmp_path, thing):
    with pytest.raises(WeightsError, match=r"w.pth.*(not tensors by name|no tensors by name).*state_dict"):
        weights.read(save(tmp_path / "w.pth", thing))


def test_a_pickled_model_is_refused_with_a_remedy(tmp_path):
    for write in FORMATS:
        with pytest.raises(WeightsError, match=r"(would run code: torch.nn|whole model).*Save `model.state_dict\(\)`"):
            weights.read(save(tmp_path / "w.pth", torch.nn.Linear(2, 2), write))


def test_a_sparse_tensor_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="_rebuild_sparse_tensor, which is not a plain tensor"):
        weights.read(save(tmp_path / "w.pth", {"a": torch.eye(3).to_sparse()}))


@pytest.mark.parametrize("write", FORMATS)
def test_an_expanded_tensor_larger_than_its_storage_is_refused(tmp_path, write):
    with pytest.raises(WeightsError, match=r"shape \(1000000000000,\), but storage \d+ holds 1 values"):
        weights.read(save(tmp_path / "w.pth", {"a": torch.ones(1).expand(10**12)}, write))


def test_safetensors(tmp_path):
    state = {n: t.detach().clone().contiguous() for n, t in plain_state().items()}
    del state["complex"]
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    read = weights.read(path)
    check({name: read[name] for name in state}, state)
    assert read["bfloat16"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, write):
    rng = np.random.default_rng(0)
    arrays = {"a/kernel": rng.normal(size=(3, 4)), "b": np.asfortranarray(rng.normal(size=(2, 5)).astype(np.float32))}
    arrays["c"] = arrays["b"].astype(ml_dtypes.bfloat16)
    path = tmp_path / "w.npz"
    write(path, **arrays)
    read = weights.read(path)
    assert read["c"].dtype == ml_dtypes.bfloat16
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_npz_of_objects_is_refused_before_it_is_unpickled(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([{1: 2}], dtype=object))
    with pytest.raises(WeightsError, match=r"would run code: a.npy holds pickled objects"):
        weights.read(path)


def test_npz_that_unpacks_without_end(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (2**26,)})
        for _ in range(256):
            member.write(bytes(2**20))
    with pytest.raises(WeightsError, match="would unpack to"):
        weights.read(path)


def test_npz_whose_header_declares_too_much(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    with pytest.raises(WeightsError, match=r"a.npy declares shape"):
        weights.read(path)


def test_safetensors_whose_header_declares_too_much(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(WeightsError, match="cut short, damaged or no safetensors"):
        weights.read(path)
    path.write_bytes((2**60).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="cut short, damaged or no safetensors"):
        weights.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\0" * 257 + b"ustar" + b"\0" * 250, "tar archive"),
        (b"\x10\0\0\0\0\0\0\0{}", "safetensors file by its content"),
        (b"hello", "neither a zip archive nor a pickle"),
    ],
    ids=["empty", "lfs", "html", "tar", "safetensors", "text"],
)
def test_files_of_other_kinds_are_refused(tmp_path, content, message):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.read(path)
    assert str(path) in str(caught.value)


def test_missing_files_other_suffixes_and_directories_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        weights.read(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"end in .safetensors, .npz, .pth"):
        weights.read(tmp_path / "w.h5")
    (tmp_path / "d.pt").mkdir()
    with pytest.raises(WeightsError, match="directory"):
        weights.read(tmp_path / "d.pt")


def test_the_state_of_a_torchscript_program_is_read_without_its_code(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(torch.nn.BatchNorm2d(4))).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.jit.script(module)
        program.save(str(tmp_path / "w.pt"))
        torch.jit.freeze(program).save(str(tmp_path / "frozen.pt"))
    state = {name: tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}
    read = weights.read(tmp_path / "w.pt")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())
    with pytest.raises(WeightsError, match=r"frozen.pt: it is a TorchScript program whose parameters are constants"):
        weights.read(tmp_path / "frozen.pt")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("histojax.weights", {"jax", "flax", "torch", "histojax.models"}),
        ("histojax.weights.saving, histojax.weights.hub", {"torch"}),
    ],
)
def test_reading_weights_imports_neither_jax_nor_torch(modules, absent):
    code = f"import sys, {modules}; print({absent} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
