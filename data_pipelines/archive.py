"""Extracting a published archive that one did not write oneself."""

import gzip
import os
import pathlib
import shutil
import tarfile
import zlib
from typing import IO, cast

from data_pipelines.errors import DataError
from data_pipelines.listing import fingerprint, list_files

SUFFIXES = (".tar.gz", ".tgz", ".tar")


def is_archive(path: pathlib.Path) -> bool:
    """Whether the name is that of a tar archive."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(root: pathlib.Path, into: pathlib.Path, wanted: tuple[str, ...] = (".png",)) -> pathlib.Path:
    """The folder with the files of the wanted suffixes: `root`, or what its archive holds, extracted once below `into`.

    Raises:
      DataError: several archives and no such file, or an archive that is damaged or unsafe.
    """
    packed = [root] if root.is_file() else []
    if root.is_dir() and not list_files(root, wanted):
        packed = sorted(path for path in root.iterdir() if path.is_file() and is_archive(path))
    if not packed:
        return root
    if len(packed) > 1:
        names = ", ".join(path.name for path in packed)
        raise DataError(f"{root}: several archives ({names}); name one of them as data.root")
    if not is_archive(packed[0]):
        raise DataError(f"{root}: neither a folder nor a {' or '.join(SUFFIXES)} archive")
    return extract(packed[0], into / f"{packed[0].name.split('.')[0]}-{fingerprint([packed[0]])}", wanted)


def extract(archive: pathlib.Path, destination: pathlib.Path, wanted: tuple[str, ...] = (".png",)) -> pathlib.Path:
    """Extracts the files of the wanted suffixes of a tar archive; nothing else, and only below `destination`.

    Done once: an existing `destination` is complete, because it is renamed into place at the end.

    Raises:
      DataError: a member points outside the archive's root or is a link or device; the archive is damaged.
    """
    if destination.exists():
        return destination
    partial = destination.with_name(f"{destination.name}.tmp-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        with _open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    _extract_member(tar, member, archive, partial, wanted)
            _check_end(stream)
        try:
            partial.rename(destination)
        except OSError:
            if not destination.is_dir():  # else another process was first, with the same result
                raise
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: damaged or cut short ({error}); download it again") from error
    except OSError as error:
        if error.errno is None:  # gzip reports a bad checksum as an OSError without a number
            raise DataError(f"{archive}: damaged ({error}); download it again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def _open(archive: pathlib.Path) -> IO[bytes]:
    with open(archive, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(archive)) if packed else open(archive, "rb")


def _check_end(stream: IO[bytes]) -> None:
    """Verifies that the archive ended where reading it stopped: zeros follow, up to the end.

    tarfile takes a header that is damaged or missing for the end of the archive, silently; and gzip
    compares its checksum when it is read to the end only.
    """
    length = 0
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("a member's header is damaged")
        length += len(block)
    if not length:
        raise tarfile.ReadError("the end is missing")


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, archive: pathlib.Path, to: pathlib.Path, wanted: tuple[str, ...]
) -> None:
    path = pathlib.PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: member '{member.name}' points outside the archive; refused, nothing was kept")
    if member.isdir():
        return
    if not member.isfile():
        raise DataError(f"{archive}: member '{member.name}' is a link or a device; refused, nothing was kept")
    if not path.name.lower().endswith(wanted) or path.name.startswith("."):
        return
    target = to / path
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None  # isfile() above
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
