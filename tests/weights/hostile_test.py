"""Files that are cut, flipped or written to do harm: a clear error, and nothing happens."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from histojax import weights
from histojax.weights import WeightsError, torch_pickle
from tests.helpers.torch_files import FORMATS, save

P = pickle
DATA = struct.pack("<4f", 1, 2, 3, 4)


def write(path, pickled: bytes, form: str, data: bytes = DATA, keys=("0",), numel=None):
    """Put any pickle where torch.save puts its own, beside one storage "0"."""
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/byteorder", b"little")
            archive.writestr("archive/data/0", data)
        return path
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, info))
    count = len(data) // 4 if numel is None else numel
    path.write_bytes(head + pickled + pickle.dumps(list(keys), 2) + struct.pack("<q", count) + data)
    return path


def text(value: str) -> bytes:
    return P.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    data = pickle.dumps(value, 2)
    return data[2:-1]


def tensor(shape, strides, offset=0, numel=4, kind=b"ctorch\nFloatStorage\n", form="zip") -> bytes:
    """Opcodes of `_rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`."""
    storage = P.MARK + text("storage") + kind + text("0") + text("cpu") + whole(numel)
    storage += (P.NONE if form == "legacy" else b"") + P.TUPLE + P.BINPERSID
    sizes = b"".join(P.MARK + b"".join(map(whole, values)) + P.TUPLE for values in (shape, strides))
    hooks = b"ccollections\nOrderedDict\n" + P.EMPTY_TUPLE + P.REDUCE
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + P.MARK
        + storage
        + whole(offset)
        + sizes
        + P.NEWFALSE
        + hooks
        + P.TUPLE
        + P.REDUCE
    )


def state(*values: bytes) -> bytes:
    items = b"".join(text(f"w{i}") + value for i, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


def benign(form="zip") -> bytes:
    return state(tensor((2, 2), (2, 1), form=form))


@pytest.mark.parametrize("form", FORMATS)
def test_torch_reads_the_files_that_this_module_writes(tmp_path, form):
    path = write(tmp_path / "w.pt", benign(form), form)
    assert torch.load(path)["w0"].tolist() == weights.read(path)["w0"].tolist() == [[1, 2], [3, 4]]


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    def __setstate__(self, state):
        eval(state["code"])


def hostile_pickles(marker) -> dict[str, tuple[bytes, str]]:
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    stateful = Stateful()
    stateful.code = code
    nested = {"a": [{"b": (1, stateful)}]}
    by_exec = Evil(exec, code)
    return {
        "system": (pickle.dumps({"w0": Evil(os.system, command)}, 2), f"{os.system.__module__}.system"),
        "eval": (pickle.dumps({"w0": Evil(eval, code)}, 2), "__builtin__.eval"),
        "eval, stack global": (pickle.dumps({"w0": Evil(eval, code)}, 4), "builtins.eval"),
        "exec as a key": (pickle.dumps({(1, by_exec): 1}, 4), "builtins.exec"),
        "setstate": (pickle.dumps(nested, 2), f"{__name__}.Stateful"),
        "setstate, protocol 5": (pickle.dumps(nested, 5), f"{__name__}.Stateful"),
        "inst": (b"\x80\x02}(" + text("w0") + b"(" + text(command) + b"ios\nsystem\nu.", "os.system"),
        "obj": (b"\x80\x02}(" + text("w0") + b"(cos\nsystem\n" + text(command) + b"ou.", "os.system"),
        "extension": (b"\x80\x02\x82\x01.", "would run code"),
        "getattr": (
            b"\x80\x02c__builtin__\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR.",
            "__builtin__.getattr",
        ),
        "dotted": (b"\x80\x04" + text("torch") + text("serialization.os.system") + b"\x93.", "torch.serialization.os"),
        "torch.load": (b"\x80\x02ctorch\nload\n(" + text("x") + b"tR.", "torch.load"),
        "hub": (b"\x80\x02ctorch.hub\nload\n(" + text("x") + b"tR.", "torch.hub.load"),
        "import": (b"\x80\x02c__builtin__\n__import__\n(" + text("os") + b"tR.", "__builtin__.__import__"),
        "runpy": (b"\x80\x02crunpy\nrun_path\n(" + text("x") + b"tR.", "runpy.run_path"),
        "newobj": (b"\x80\x02csubprocess\nPopen\n(" + text(command) + b"t\x81.", "subprocess.Popen"),
        "newobj_ex": (pickle.dumps({"a": 1}, 4)[:-1] + b"csubprocess\nPopen\n)}\x92.", "subprocess.Popen"),
    }


NAMES = sorted(hostile_pickles("/nowhere"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMATS)
def test_no_code_is_run(tmp_path, name, form):
    marker = tmp_path / "marker"
    pickled, culprit = hostile_pickles(marker)[name]
    path = write(tmp_path / "w.pt", pickled, form)
    with pytest.raises(WeightsError) as caught:
        weights.read(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    assert culprit in str(caught.value)
    assert "this file would run code" in str(caught.value)


@pytest.mark.parametrize("name", ["system", "eval", "setstate", "inst", "obj"])
def test_the_pickles_here_would_run_code_elsewhere(tmp_path, name, monkeypatch):
    marker = tmp_path / "marker"
    pickled, _ = hostile_pickles(marker)[name]
    opened = []
    monkeypatch.setattr("builtins.open", lambda *_: opened.append(marker.touch()))
    pickle.loads(pickled)
    assert marker.exists()


@pytest.mark.parametrize("part", range(3))
def test_no_code_is_run_before_the_tensors_of_a_legacy_file(tmp_path, part):
    marker = tmp_path / "marker"
    parts = [pickle.dumps(p, 2) for p in (0x1950A86A20F9469CFC6C, 1001, {})]
    parts[part] = pickle.dumps(Evil(os.system, f"touch {marker}"), 2)
    path = tmp_path / "w.pt"
    path.write_bytes(b"".join(parts) + benign("legacy"))
    with pytest.raises(WeightsError, match="would run code"):
        weights.read(path)
    assert not marker.exists()


# The permitted names only build tensors, for any arguments.
@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cargparse\nNamespace\n)\x81}(" + text("__class__") + text("x") + b"ub.",
        b"\x80\x02}}(" + text("__setstate__") + b"c__builtin__\nset\nub.",
        b"\x80\x02ctorch\nFloatStorage\n(K\x01tR.",
        b"\x80\x02" + text("eval") + b"(" + text("1") + b"tR.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(cnumpy\ndtype\n)R\x89}tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.",
        b"\x80\x02(K\x01K\x02t}b.",
        b"\x80\x02ccollections\nOrderedDict\n](K\x01K\x02e\x85R.",
    ],
    ids=["namespace", "setstate", "storage", "string", "parameter", "arguments", "storage", "build", "pairs"],
)
@pytest.mark.parametrize("form", FORMATS)
def test_permitted_names_cannot_be_misused(tmp_path, pickled, form):
    with pytest.raises(WeightsError):
        weights.read(write(tmp_path / "w.pt", pickled, form))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (2**40,), "strides": (1,)}, "holds 4 values"),
        ({"shape": (2**40,), "strides": (0,)}, "holds 4 values"),
        ({"shape": (5,), "strides": (1,)}, "holds 4 values"),
        ({"shape": (2, 2), "strides": (3, 1)}, "holds 4 values"),
        ({"shape": (4,), "strides": (1,), "offset": 1}, "holds 4 values"),
        ({"shape": (1,), "strides": (1,), "offset": 2**40}, "holds 4 values"),
        ({"shape": (2,), "strides": (-1,), "offset": 1}, "a stride is -1"),
        ({"shape": (-1,), "strides": (1,)}, "an axis is -1"),
        ({"shape": (2,), "strides": (1,), "offset": -1}, "an offset is -1"),
        ({"shape": (2**70,), "strides": (1,)}, "an axis is"),
        ({"shape": (0, 2**40), "strides": (1, 1)}, "an empty tensor of shape"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "40 axes"),
        ({"shape": (2, 2), "strides": (1,)}, "2 axes with 1 strides"),
        ({"shape": (2,), "strides": (1,), "numel": 2**40}, "storage 0 of 4398046511104 bytes"),
        ({"shape": (2,), "strides": (1,), "numel": -1}, "storage's size is -1"),
        ({"shape": (2,), "strides": (1,), "kind": b"ctorch\nQInt8Storage\n"}, "torch.QInt8Storage"),
        ({"shape": (2,), "strides": (1,), "kind": text("FloatStorage")}, "storage without type"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMATS)
def test_shapes_that_the_file_cannot_hold(tmp_path, options, message, form):
    path = write(tmp_path / "w.pt", state(tensor(**options, form=form)), form)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message):
            weights.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b".",
        b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b".",
        b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"r" * 5,
        b"\x80\x02" + b"N\x85" + b"\x85" * 200_000 + b".",
        b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b".",
        b"\x80\x02}" + b"q\x00)" + b"q\x01h\x01\x86" * 200 + b"Ns.",
        b"\x80\x02" + b"}(U\x01a" * 20_000 + b"N" + b"u" * 20_000 + b".",
        b"\x80\x02}q\x00(U\x01ah\x00u.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02.",
        b"\x80\x02NN.",
        b"\x80\x02\x86.",
        b"\x80\x02h\x05.",
        b"\x80\x02}(Nu.",
        b"\x80\x02NNs.",
        b"\x80\x02NNa.",
        b"\x80\x07N.",
        b"\x80\x02P0\n.",
    ],
    ids=lambda p: repr(p[:8]),
)
@pytest.mark.parametrize("form", FORMATS)
def test_pickles_that_exhaust_or_confuse(tmp_path, pickled, form):
    path = write(tmp_path / "w.pt", pickled, form)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            weights.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 20


def test_messages_are_short_for_any_content(tmp_path):
    doubled = b"\x80\x02)" + b"q\x00h\x00\x86" * 200
    for pickled in (
        b"\x80\x02ctorch\n" + b"x" * 900 + b"\n.",
        state(tensor((2,), (1,)).replace(whole(0) + P.MARK, doubled[2:] + P.MARK, 1)),
        b"\x80\x02}(" + text("k" * 10_000) + b"}" + text("l" * 10_000) + b"}u.",
    ):
        with pytest.raises(WeightsError) as caught:
            weights.read(write(tmp_path / "w.pt", pickled, "zip"))
        assert len(str(caught.value)) < 1000


def test_only_containers_have_state(tmp_path):
    with pytest.raises(WeightsError, match="sets the state of a tuple"):
        weights.read(write(tmp_path / "w.pt", state(b"(K\x01K\x02t}b"), "zip"))


@pytest.mark.parametrize("keys", [(), ("0", "0"), ("1",), ("0", "1"), (0,)], ids=str)
def test_storages_that_are_not_those_named(tmp_path, keys):
    with pytest.raises(WeightsError, match=r"(its storages|list of its storages)"):
        weights.read(write(tmp_path / "w.pt", benign("legacy"), "legacy", keys=keys))


@pytest.mark.parametrize(("numel", "data"), [(5, DATA), (2**60, DATA), (-1, DATA), (4, DATA + b"x"), (4, DATA[:-1])])
def test_storages_of_another_size(tmp_path, numel, data):
    with pytest.raises(WeightsError, match=r"declares|follow the last"):
        weights.read(write(tmp_path / "w.pt", benign("legacy"), "legacy", data, numel=numel))


def test_zip_archives_that_torch_does_not_write(tmp_path):
    def archive(*members, compression=zipfile.ZIP_STORED):
        path = tmp_path / "w.pt"
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, data in members:
                file.writestr(name, data)
        return path

    pickled = ("a/data.pkl", benign())
    with pytest.raises(WeightsError, match="compressed or encrypted"):
        weights.read(archive(pickled, ("a/data/0", DATA), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(WeightsError, match="storage 0 of 16 bytes is missing"):
        weights.read(archive(pickled))
    with pytest.raises(WeightsError, match="storage 0 of 16 bytes is 15 bytes"):
        weights.read(archive(pickled, ("a/data/0", DATA[:-1])))
    with pytest.raises(WeightsError, match="byte order"):
        weights.read(archive(pickled, ("a/data/0", DATA), ("a/byteorder", b"middle")))
    with pytest.raises(WeightsError, match=r"without data.pkl"):
        weights.read(archive(("b.txt", b"")))
    with pytest.raises(WeightsError, match=r"without data.pkl"):
        weights.read(archive(pickled, ("b/data.pkl", b"")))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(pickled, ("a/data/0", DATA), ("a/data/0", DATA))
    with pytest.raises(WeightsError, match="twice"):
        weights.read(path)


def good_files(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    yield save(tmp_path / "zip.pt", module, "zip")
    yield save(tmp_path / "legacy.pt", {"model": module, "epoch": 1}, "legacy")
    arrays = {name: tensor.numpy() for name, tensor in module.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    yield tmp_path / "w.npz"
    import safetensors.numpy

    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    yield tmp_path / "w.safetensors"


def test_cut_anywhere(tmp_path):
    for path in good_files(tmp_path):
        content, intact = path.read_bytes(), weights.read(path)
        assert intact
        broken = path.with_stem("broken")
        for length in sorted(
            {*range(0, len(content), max(len(content) // 150, 1)), *range(len(content) - 40, len(content))}
        ):
            broken.write_bytes(content[:length])
            with pytest.raises(WeightsError, match="broken"):
                weights.read(broken)


def test_flipped_anywhere(tmp_path):
    # Only the zip formats have checksums; in the others a flip may go unseen in a value or a name, never crash.
    rng = np.random.default_rng(0)
    for path in good_files(tmp_path):
        content, intact = path.read_bytes(), weights.read(path)
        broken = path.with_stem("broken")
        unseen = 0
        for _ in range(400):
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
            broken.write_bytes(damaged)
            try:
                read = weights.read(broken)
            except WeightsError:
                continue
            unseen += 1
            if path.suffix == ".npz" or path.name == "zip.pt":
                assert {n: a.tobytes() for n, a in read.items()} == {n: a.tobytes() for n, a in intact.items()}
        assert unseen < 400


def test_any_bytes_as_a_pickle(tmp_path):
    rng = np.random.default_rng(0)
    content = bytearray(benign())
    for _ in range(3000):
        damaged = content.copy()
        for position in rng.integers(2, len(content), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(torch_pickle.Problem):
            torch_pickle.pickle_machine.loads(bytes(damaged), torch_pickle.find, lambda _: None)
