"""A thousand hostile files: none crashes, hangs or exhausts the program, and each is reported."""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import ROOT

FORMATS = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "jp2": "JPEG2000"}
PEAK_MIB = 900  # of the whole process: 250 before any image is read, 540 for one of 89 million pixels
PROGRAM = """
    import json, pathlib, sys
    from histojax.cli.bench.worker import memory_peak
    from histojax.inference.predict import prediction_run
    from histojax.inference.predict.images import find
    from tests.helpers.colour_model import ColourModel
    refs = find(sys.argv[2:])
    model, output = ColourModel(batch_size=32), pathlib.Path(sys.argv[1])
    summary = prediction_run.run(refs, [model], output, thresholds=None)
    print(json.dumps([len(refs), summary.failed, memory_peak() >> 20]))
"""


def pictures(rng: np.random.Generator) -> dict[str, list[bytes]]:
    """Valid files by suffix, of every kind of picture."""
    smooth = np.linspace(0, 255, 40 * 30 * 4).reshape(40, 30, 4)
    pixels = np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
    found: dict[str, list[bytes]] = {}
    for suffix, name in FORMATS.items():
        options: list[dict[str, object]] = [{}]
        if name == "JPEG":
            options += [{"progressive": True}, {"comment": "x" * 300}]
        if name == "TIFF":
            options += [{"compression": kind} for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
        for mode in ("RGB", "RGB", "RGBA", "L", "P"):
            if mode in ("RGBA", "P") and name in ("JPEG", "JPEG2000"):
                continue
            for option in options:
                if option.get("compression") == "jpeg" and mode in ("RGBA", "P"):
                    continue
                file = io.BytesIO()
                Image.fromarray(pixels).convert(mode).save(file, name, **option)  # type: ignore[arg-type]
                found.setdefault(suffix, []).append(file.getvalue())
    return found


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    # Headers steer decoders: half of the flips hit the first bytes.
    for _ in range(int(rng.integers(1, 20))):
        end = len(out) if rng.random() < 0.5 else min(len(out), 64)
        out[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def splice(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + rng.bytes(int(rng.integers(0, 2 * (end - start) + 1))) + data[end:]


def giant(suffix: str, rng: np.random.Generator) -> bytes:
    """A header that claims far more pixels than the file holds, its checksums right."""
    width, height = (int(2 ** rng.uniform(12, 16)) for _ in range(2))
    if suffix == "bmp":
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + bytes(99)
    if suffix == "jpg":
        frame = struct.pack(">BHHB", 8, min(height, 65500), min(width, 65500), 3) + bytes(
            (1, 34, 0, 2, 17, 0, 3, 17, 0)
        )
        return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xd9"
    if suffix == "tif":
        fields = [(256, width), (257, height), (259, 1), (262, 2), (273, 8), (277, 3), (278, height), (279, 99)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
        return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + bytes(99)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = zlib.compress(bytes(200_000 if rng.random() < 0.5 else 100))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def odd_name(number: int, suffix: str, rng: np.random.Generator) -> bytes:
    parts = [b"\n", b"<b>x&lt;", b'"', b",", b"\xff\xfe", "ä".encode(), b" ", b"'", b"\r", b"=1+1", b"\\", b"%00"]
    chosen = b"".join(parts[i] for i in rng.integers(0, len(parts), 3))
    return b"%04d" % number + chosen + b"." + suffix.encode()


def write_thousand(folder: pathlib.Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = pictures(rng)
    damages: list[Callable[[bytes, np.random.Generator], bytes]] = [flip, cut, splice, lambda data, _: data]
    suffixes = list(FORMATS)
    for number in range(1000):
        suffix = suffixes[number % len(suffixes)]
        if number % 20 == 19:
            data = giant(suffix, rng)
        else:
            data = damages[number // 5 % 4](whole[suffix][int(rng.integers(len(whole[suffix])))], rng)
        place = os.fsencode(folder) + b"/%d/" % (number % 7)
        os.makedirs(place, exist_ok=True)
        with open(place + odd_name(number, suffix, rng), "wb") as file:
            file.write(data)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_thousand_hostile_files_are_each_reported(tmp_path: pathlib.Path, seed: int) -> None:
    folder = tmp_path / "<i>hostile\n"
    write_thousand(folder, seed)
    (folder / "0" / "up").symlink_to(folder)
    (folder / "1" / "round").symlink_to("round")
    (folder / "1" / "round.png").symlink_to("round.png")
    os.mkfifo(folder / "1" / "pipe.png")
    (folder / "1" / "folder.png").mkdir()
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.png", bytes(2**27))
        for name in ("../../etc/x.png", "/x.png", "<b>\n.png"):
            file.writestr(name, pictures(np.random.default_rng(seed))["png"][0])
    output = tmp_path / "out.csv"
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(output), str(folder), str(archive)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found, failed, peak = json.loads(done.stdout)
    table, failures = pd.read_csv(output), pd.read_csv(tmp_path / "out.failed.csv", keep_default_na=False)
    assert found == 1000 + 2 + 4  # the link to itself, the pipe; the archive's
    assert (len(table), len(failures)) == (found - failed, failed)
    names = [*table["image_id"], *failures["image_id"]]
    assert len(set(names)) == found
    assert sum("<i>hostile\n/" in name for name in names) == 1002
    assert (failures["reason"] != "").all()
    assert 100 < len(table) < 600  # some files are intact, and some damage has no effect
    reasons = dict(zip(failures["image_id"], failures["reason"], strict=True))
    assert "zip bomb" in reasons[f"{archive}/zeros.png"]
    assert "outside the archive" in reasons[f"{archive}/../../etc/x.png"]
    assert reasons[f"{folder}/1/pipe.png"] == "not a regular file"
    assert f"{archive}/<b>\n.png" in set(table["image_id"])
    assert peak < PEAK_MIB, f"{peak} MiB"
    print(f"seed {seed}: {failed} of {found} reported, peak RSS {peak} MiB")
