"""Extracting a downloaded archive: once, completely, and only below its destination."""

import gzip
import io
import pathlib
import tarfile

import cv2
import numpy as np
import pytest

from data_pipelines import archive
from data_pipelines.errors import DataError

RNG_BYTES = 3_000  # per test image; random, so that compression does not hide flipped bytes


def _file(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def _special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def _images(n: int = 6) -> list[tuple[tarfile.TarInfo, bytes]]:
    rng = np.random.default_rng(0)
    return [_file(f"BreaKHis_v1/breast/{i}.png", rng.bytes(RNG_BYTES)) for i in range(n)]


def _write(path: pathlib.Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> pathlib.Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def _below(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _assert_refused(path: pathlib.Path, reason: str) -> None:
    """Check that the error names the archive and the reason, and that nothing is left behind or written elsewhere."""
    before = _below(path.parent)
    destination = path.parent / "into" / "extracted"
    with pytest.raises(DataError, match=reason) as caught:
        archive.extract(path, destination)
    assert str(path) in str(caught.value)
    assert _below(path.parent) == before
    assert not list((path.parent / "into").iterdir())


@pytest.mark.parametrize("name", ["BreaKHis_v1.tar.gz", "BreaKHis_v1.tgz", "BreaKHis_v1.tar"])
def test_only_images_are_extracted_and_unchanged(name: str, tmp_path: pathlib.Path) -> None:
    members = _images(3)
    others = [
        _special("BreaKHis_v1", tarfile.DIRTYPE),
        _file("BreaKHis_v1/README.txt", b"hello"),
        _file("BreaKHis_v1/run.sh", b"rm -rf ~"),
        _file("BreaKHis_v1/breast/._0.png", b"metadata that macOS adds"),
        _file("./BreaKHis_v1/UPPER.PNG", b"x"),
    ]
    destination = tmp_path / "deep" / "extracted"
    assert archive.extract(_write(tmp_path / name, others[:2] + members + others[2:]), destination) == destination
    expected = {info.name: content for info, content in members} | {"BreaKHis_v1/UPPER.PNG": b"x"}
    assert _below(destination) == expected
    assert [p.name for p in destination.parent.iterdir()] == ["extracted"]  # no temporary folder


def test_real_image_is_extracted_unchanged(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    folder = archive.extract(_write(tmp_path / "a.tar.gz", [_file("a/b.png", data)]), tmp_path / "out")
    np.testing.assert_array_equal(cv2.imread(str(folder / "a" / "b.png")), pixels)


def test_members_without_permissions_are_extracted(tmp_path: pathlib.Path) -> None:
    info, content = _file("a/b.png", b"x")
    info.mode = 0
    folder = archive.extract(_write(tmp_path / "a.tar.gz", [(info, content)]), tmp_path / "out")
    assert (folder / "a" / "b.png").stat().st_mode & 0o400


def test_extracted_archive_is_not_extracted_again(tmp_path: pathlib.Path) -> None:
    path = _write(tmp_path / "a.tar.gz", _images())
    destination = archive.extract(path, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in destination.rglob("*")}
    path.unlink()  # the second call does not open it
    assert archive.extract(path, destination) == destination
    assert {p: p.stat().st_mtime_ns for p in destination.rglob("*")} == before


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (_file("../outside.png", b"x"), r"'\.\./outside\.png' points outside the archive; nothing was extracted"),
        (_file("a/../../outside.png", b"x"), "points outside"),
        (_file("../outside.txt", b"x"), "points outside"),
        (_special("..", tarfile.DIRTYPE), "points outside"),
        (
            _special("a/link.png", tarfile.SYMTYPE, "/etc/hostname"),
            "'a/link.png' is a link or a device; nothing",
        ),
        (_special("a", tarfile.SYMTYPE, ".."), "is a link or a device"),
        (_special("a/hard.png", tarfile.LNKTYPE, "BreaKHis_v1/breast/0.png"), "is a link or a device"),
        (_special("a/pipe.png", tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_archive_with_an_unsafe_member_is_refused(
    member: tuple[tarfile.TarInfo, bytes], reason: str, last: bool, tmp_path: pathlib.Path
) -> None:
    members = [*_images(), member] if last else [member, *_images()]
    _assert_refused(_write(tmp_path / "unsafe.tar.gz", members), reason)


def test_archive_with_an_absolute_member_is_refused(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "absolute.png"
    _assert_refused(_write(tmp_path / "unsafe.tar.gz", [*_images(), _file(str(target), b"x")]), "points outside")
    assert not target.exists()


@pytest.mark.parametrize("name", ["cut.tar.gz", "cut.tar"])
def test_archive_cut_anywhere_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    # An uncompressed archive may also be cut between two members: tarfile takes the missing header for the end.
    path = _write(tmp_path / name, _images())
    data = path.read_bytes()
    whole = len(data) if name.endswith(".gz") else 6 * (512 + 3072)  # a tar ends in zeros
    for length in [*range(0, whole, 512), *range(100, whole, 1500), whole - 1]:
        path.write_bytes(data[:length])
        _assert_refused(path, "damaged")


def test_flipped_byte_in_a_compressed_archive_is_refused(tmp_path: pathlib.Path) -> None:
    path = _write(tmp_path / "flipped.tar.gz", _images())
    data = path.read_bytes()
    for position in range(10 + len("flipped.tar") + 1, len(data), 301):  # after gzip's header
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        _assert_refused(path, "damaged")


@pytest.mark.parametrize("header", [0, 1, 5])
def test_damaged_header_is_not_the_end_of_the_archive(header: int, tmp_path: pathlib.Path) -> None:
    path = _write(tmp_path / "flipped.tar", _images())
    data = bytearray(path.read_bytes())
    data[header * (512 + 3072) + 3] ^= 1
    path.write_bytes(data)
    _assert_refused(path, "damaged")
    path = tmp_path / "flipped.tar.gz"
    path.write_bytes(gzip.compress(data))  # damaged before compression: gzip's checksum is correct
    _assert_refused(path, "damaged")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404 not found</html>" * 100, b"\x1f\x8b", gzip.compress(b"text" * 500)],
    ids=["empty", "page", "two bytes", "packed text"],
)
def test_file_that_is_not_an_archive_is_refused(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "BreaKHis_v1.tar.gz"
    path.write_bytes(content)
    _assert_refused(path, "damaged or truncated")


def test_refused_archive_can_be_replaced_by_a_good_one(tmp_path: pathlib.Path) -> None:
    path = _write(tmp_path / "a.tar.gz", _images())
    good = path.read_bytes()
    path.write_bytes(good[:2000])
    with pytest.raises(DataError):
        archive.extract(path, tmp_path / "out")
    path.write_bytes(good)
    assert len(_below(archive.extract(path, tmp_path / "out"))) == 6


def test_missing_archive_is_an_os_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        archive.extract(tmp_path / "none.tar.gz", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.tar.gz", True),
        ("A.TAR.GZ", True),
        ("a.tgz", True),
        ("a.tar", True),
        ("a.zip", True),
        ("a.rar", False),
        ("tar", False),
    ],
)
def test_archives_are_recognised_by_name(name: str, expected: bool) -> None:
    assert archive.is_archive(pathlib.Path(name)) is expected
