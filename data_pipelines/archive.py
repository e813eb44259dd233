"""Safe extraction of a downloaded archive."""

import gzip
import os
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from typing import IO, cast

from data_pipelines.errors import DataError
from data_pipelines.listing import folder_name
from histojax.core.walk import find_files

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


def is_archive(path: pathlib.Path) -> bool:
    """Return whether the name is that of an archive."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(root: pathlib.Path, into: pathlib.Path, wanted: tuple[str, ...] = (".png",)) -> pathlib.Path:
    """Return the folder that holds the files with the wanted suffixes.

    That is `root` itself, unless it is an archive or holds nothing but one: its content is then extracted, once.

    Args:
      root: a folder or an archive.
      into: the folder below which an archive is extracted.
      wanted: suffixes, lower case.

    Raises:
      DataError: several archives and no wanted file, or a damaged or unsafe archive.
    """
    archives = [root] if root.is_file() else []
    if root.is_dir() and not find_files(root, wanted).paths:
        archives = sorted(path for path in root.iterdir() if path.is_file() and is_archive(path))
    if not archives:
        return root
    if len(archives) > 1:
        names = ", ".join(path.name for path in archives)
        raise DataError(f"{root}: several archives ({names}); set data.root to one of them")
    if not is_archive(archives[0]):
        raise DataError(f"{root}: neither a folder nor a {' or '.join(SUFFIXES)} archive")
    name = folder_name(into, archives[:1], prefix=f"{archives[0].name.split('.')[0]}-")
    return extract(archives[0], into / name, wanted)


def extract(archive: pathlib.Path, destination: pathlib.Path, wanted: tuple[str, ...] = (".png",)) -> pathlib.Path:
    """Extract the files with the wanted suffixes from an archive; nothing else, and only below `destination`.

    An existing `destination` is returned as it is: it is complete, because it is renamed into place at the end.

    Args:
      archive: a tar file, compressed by gzip or not, or a zip file.
      destination: the folder to create.
      wanted: suffixes, lower case.

    Raises:
      DataError: a member points outside the archive, or is a link or device; or the archive is damaged.
    """
    if destination.exists():
        return destination
    partial = destination.with_name(f"{destination.name}.tmp-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive) and archive.name.lower().endswith(".zip"):
            _extract_zip(archive, partial, wanted)
        else:
            with _open(archive) as stream:
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    for member in tar:
                        _extract_member(tar, member, archive, partial, wanted)
                _check_end(stream)
        try:
            partial.rename(destination)
        except OSError:
            if not destination.is_dir():  # another process was first, with the same result
                raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: damaged or truncated ({error}); download it again") from error
    except OSError as error:
        if error.errno is None:  # gzip reports a wrong checksum as an OSError without a number
            raise DataError(f"{archive}: damaged ({error}); download it again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def _open(archive: pathlib.Path) -> IO[bytes]:
    with open(archive, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(archive)) if gzipped else open(archive, "rb")


def _check_end(stream: IO[bytes]) -> None:
    """Verify that only zeros follow the position where tarfile stopped.

    tarfile silently takes a damaged or missing header for the end of the archive, and gzip compares its checksum only
    if it is read to the end.

    Raises:
      tarfile.ReadError: data follow the position, or the end is missing.
    """
    length = 0
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("a member's header is damaged")
        length += len(block)
    if not length:
        raise tarfile.ReadError("the end is missing")


def _extract_zip(archive: pathlib.Path, to: pathlib.Path, wanted: tuple[str, ...]) -> None:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{archive}: member '{member.filename}' is a link or a device; nothing was extracted")
            target = _target(member.filename, archive, to, wanted)
            if member.is_dir() or target is None:
                continue
            try:
                with content.open(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
            # zipfile raises these for a member with a password, and for a compression that it does not know.
            except (RuntimeError, NotImplementedError) as error:
                raise DataError(
                    f"{archive}: member '{member.filename}' cannot be read ({error}); unpack it yourself"
                ) from error


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, archive: pathlib.Path, to: pathlib.Path, wanted: tuple[str, ...]
) -> None:
    target = _target(member.name, archive, to, wanted)
    if member.isdir():
        return
    if not member.isfile():
        raise DataError(f"{archive}: member '{member.name}' is a link or a device; nothing was extracted")
    if target is None:
        return
    content = tar.extractfile(member)
    assert content is not None  # isfile() above
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _target(name: str, archive: pathlib.Path, to: pathlib.Path, wanted: tuple[str, ...]) -> pathlib.Path | None:
    """Return the file to which a member is extracted, in a folder that exists; None: it is not wanted.

    Raises:
      DataError: it points outside the archive.
    """
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: member '{name}' points outside the archive; nothing was extracted")
    if name.endswith("/") or not path.name.lower().endswith(wanted) or path.name.startswith("."):
        return None
    target = to / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
