"""The checks of `histojax doctor` that need no jax: versions, memory, limits, disks, images, compile cache.

Each check returns findings: ok, warn or fail, with a text that says what is wrong and what to do.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from packaging.requirements import Requirement

from data_pipelines import archive
from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError
from data_pipelines.image_folder import layouts as folder_layouts
from data_pipelines.image_folder.spec import FolderSpec
from data_pipelines.liver_tiles import layouts
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.tables import SUFFIXES as TABLES
from histojax.core.directories import default_directory, expand_user
from histojax.core.errors import RunError
from histojax.core.machine import cores
from histojax.core.text_table import byte_size
from histojax.core.walk import find_files
from histojax.storage import places
from histojax.storage.bucket import Bucket
from histojax.storage.errors import BucketError

OK, WARN, FAIL = "ok", "warn", "fail"
_LISTED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")
_BLOCK = 4 << 20
_PROBE_BYTES = 64 << 20  # written and read to time a disk
_MAX_SECONDS = 2.0  # of writing, and of reading
_GIB = 1 << 30
_BUCKET_PROBE = ".histojax-doctor"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
      check: name of the check.
      level: `ok`, `warn` (works, with a reservation) or `fail` (will not work).
      text: the result; if it is not ok, also what to do.
      facts: the same as numbers, for programs.
    """

    check: str
    level: str
    text: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def versions() -> list[Finding]:
    """Check that the versions of Python and the libraries meet the requirements and fit each other."""
    installed = {name: _version(name) for name in _LISTED}
    facts = {"python": platform.python_version(), "histojax": _version("histojax"), **installed}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in facts.items())
    findings = [Finding("versions", OK, text, facts)]
    for line in importlib.metadata.requires("histojax") or []:
        required = Requirement(line)
        if required.marker is not None and not required.marker.evaluate({"extra": ""}):
            continue
        version = _version(required.name)
        if version is None:
            findings.append(Finding("versions", FAIL, f"{required.name} is missing: pip install '{required}'"))
        elif not required.specifier.contains(version, prereleases=True):
            text = f"{required.name} {version} is not a version that histojax supports: pip install '{required}'"
            findings.append(Finding("versions", WARN, text))
    return findings + _mismatches({name: _version(name) for name in ("jax", "jaxlib", *_PLUGINS)})


def _mismatches(versions: Mapping[str, str | None]) -> list[Finding]:
    """Check that jax, jaxlib and the GPU plugins have equal versions: they are released together."""
    jax, jaxlib, findings = versions["jax"], versions["jaxlib"], []
    if jax and jaxlib and jax != jaxlib:
        text = f"jax {jax} with jaxlib {jaxlib}: pip install 'jax=={jax}' 'jaxlib=={jax}'"
        findings.append(Finding("versions", WARN, text))
    for name in _PLUGINS:
        if versions.get(name) and versions[name] != jaxlib:
            text = (
                f"{name} {versions[name]} with jaxlib {jaxlib}: GPUs may not be found; pip install -U 'histojax[cuda]'"
            )
            findings.append(Finding("versions", FAIL, text))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def memory() -> Finding:
    """Check the memory and processors available to this process, which a container may limit."""
    fields = dict(line.split(":", 1) for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    owner = "machine"
    if limit is not None and limit < total:
        total, free, owner = limit, min(free, limit - (used or 0)), "container"
    count = cores()
    facts = {"memory_bytes": total, "free_bytes": free, "cores": count}
    text = f"{byte_size(free)} free of the {owner}'s {byte_size(total)}; {count} cores"
    if free < 2 * _GIB:
        text += ": too little for training. End other programs, or lower train.batch_size and data.workers"
        return Finding("memory", WARN, text, facts)
    return Finding("memory", OK, text, facts)


def _cgroup(name: str) -> int | None:
    """Return a value of the container's control group; None if it is missing or unlimited."""
    try:
        value = pathlib.Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(value) if value.isdigit() else None


def limits(shared_memory: pathlib.Path = pathlib.Path("/dev/shm")) -> list[Finding]:
    """Check the limits that data.workers and checkpoints may reach: open files and shared memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    findings = [Finding("open files", OK, f"at most {soft}", {"soft": soft, "hard": hard})]
    if soft != resource.RLIM_INFINITY and soft < 1024:
        text = (
            f"at most {soft}: checkpoints and data.workers need about 1024; run ulimit -n {min(max(hard, soft), 65536)}"
        )
        findings = [Finding("open files", WARN, text, {"soft": soft, "hard": hard})]
    try:
        free = shutil.disk_usage(shared_memory).free
    except OSError as error:
        text = f"{shared_memory}: {error.strerror}; data.workers above 0 passes images through it"
        return [*findings, Finding("shared memory", WARN, text)]
    text = f"{byte_size(free)} free in {shared_memory}"
    level = OK if free >= _GIB else WARN
    if level == WARN:
        text += ": too little for data.workers above 0; with docker use --shm-size=8g, in Kubernetes an emptyDir"
    return [*findings, Finding("shared memory", level, text, {"free_bytes": free})]


def data_directory() -> Finding:
    """Check the default folder of prepared data as `disk` does."""
    try:
        directory = default_directory()
    except RunError as error:
        return Finding("data directory", FAIL, str(error))
    return disk("data directory", str(directory))


def disk(name: str, directory: str) -> Finding:
    """Check that a folder can be written, its speed, and its free space.

    A folder that does not exist yet is checked at its nearest existing parent. The test file is removed.

    Args:
      name: name of the check.
      directory: the folder.
    """
    if places.is_address(directory):
        return _bucket(name, directory)
    place = _existing(expand_user(directory).absolute())
    try:
        written, read = _speeds(place)
    except OSError as error:
        text = f"{directory}: cannot be written ({error.strerror}); use another folder or change its permissions"
        return Finding(name, FAIL, text)
    free = shutil.disk_usage(place).free
    facts = {"write_bytes_per_second": written, "read_bytes_per_second": read, "free_bytes": free}
    text = f"{directory}: writes {byte_size(written)}/s, reads {byte_size(read)}/s, {byte_size(free)} free"
    if free < _GIB:
        return Finding(name, FAIL, f"{text}: too little; checkpoints and prepared images need at least 1 GiB", facts)
    if free < 10 * _GIB:
        return Finding(name, WARN, f"{text}: little; prepared images take as much space as their archive", facts)
    if min(written, read) < 20e6:
        return Finding(name, WARN, f"{text}: slow; runs will wait for it. Use a local disk if possible", facts)
    return Finding(name, OK, text, facts)


def _bucket(name: str, address: str) -> Finding:
    """Check that a folder in a bucket can be written, read and cleared."""
    began = time.perf_counter()
    try:
        place = Bucket(address)
        place.write(_BUCKET_PROBE, b"histojax doctor")
        place.list(_BUCKET_PROBE)
        place.delete([_BUCKET_PROBE])
    except BucketError as error:
        return Finding(name, FAIL, str(error))
    seconds = time.perf_counter() - began
    return Finding(
        name, OK, f"{address}: can be written and read, {seconds / 3:.2f} s per request", {"seconds": seconds}
    )


def _speeds(place: pathlib.Path) -> tuple[float, float]:
    """Return bytes/s of writing and of reading, past the system's cache where the system allows it."""
    block = os.urandom(_BLOCK)
    handle, path = tempfile.mkstemp(prefix=".histojax-doctor-", dir=place)
    try:
        began, size = time.perf_counter(), 0
        while size < _PROBE_BYTES and time.perf_counter() - began < _MAX_SECONDS:
            size += os.write(handle, block)
        os.fsync(handle)
        written = size / (time.perf_counter() - began)
        with contextlib.suppress(OSError):  # not supported by this file system
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        began, size = time.perf_counter(), 0
        while (count := len(os.read(handle, _BLOCK))) and time.perf_counter() - began < _MAX_SECONDS:
            size += count
        return written, size / (time.perf_counter() - began)
    finally:
        os.close(handle)
        os.unlink(path)


def compile_cache(directory: str) -> Finding:
    """Check the folder of compiled programs; an empty name means that there is none."""
    if not directory:
        return Finding("compile cache", WARN, "none: every start recompiles; set JAX_COMPILATION_CACHE_DIR")
    if "://" in directory:
        return Finding("compile cache", OK, f"{directory}: remote; not checked")
    folder = pathlib.Path(directory)
    try:
        with tempfile.NamedTemporaryFile(prefix=".histojax-doctor-", dir=_existing(folder)):
            pass
    except OSError as error:
        text = f"{folder}: cannot be written ({error.strerror}), every start recompiles (minutes)"
        return Finding("compile cache", WARN, f"{text}; set JAX_COMPILATION_CACHE_DIR or HISTOJAX_DATA")
    sizes = [entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()] if folder.is_dir() else []
    facts = {"directory": directory, "files": len(sizes), "bytes": sum(sizes)}
    return Finding("compile cache", OK, f"{folder}: {len(sizes)} files, {byte_size(sum(sizes))}", facts)


def data_root(root: str) -> Finding:
    """Check that `data.root` exists, recognise its layout, and count its images. No pixel is read."""
    path, spec = expand_user(root), TilesSpec()
    if not path.exists():
        text = f"{root}: no such file or folder. With several hosts it must exist on each of them"
        return Finding("data root", FAIL, text)
    if archive.is_archive(path) and path.is_file():
        size = path.stat().st_size
        text = f"{root}: an archive of {byte_size(size)}; it is unpacked on the first run"
        return Finding("data root", OK, text, {"layout": "archive", "bytes": size})
    if path.is_file():
        if not path.name.lower().endswith(TABLES):
            kinds = ", ".join((*archive.SUFFIXES, *TABLES))
            return Finding("data root", FAIL, f"{root}: a file that is none of {kinds}; pass its folder instead")
        path, spec = path.parent, TilesSpec(layout="table", table=path.name)
    magnifications: Counter[str] = Counter()
    try:
        images = [] if spec.table else find_files(path, (".png",)).with_links()
    except RunError as error:
        return Finding("data root", FAIL, str(error))
    for image in images:
        with contextlib.suppress(filenames.BadNameError):
            magnifications[filenames.parse(image.name).magnification] += 1
    if magnifications:
        total = magnifications.total()
        facts: dict[str, Any] = {"layout": "breakhis", "images": total, "magnifications": dict(magnifications)}
        counts = ", ".join(f"{count} at {name}" for name, count in sorted(magnifications.items()))
        return Finding("data root", OK, f"{root}: {total} images with BreakHis names ({counts})", facts)
    try:
        tiles = layouts.find(path, spec)
    except DataError as error:
        return _class_images(root, path, spec.table, error)
    facts = {"layout": tiles.layout, "images": len(tiles.items), "labels": tiles.labels, "unusable": len(tiles.bad)}
    text = f"{root}: {len(tiles.items)} tile images, labels from {tiles.layout}: {', '.join(tiles.labels)}"
    if tiles.bad:
        examples = json.dumps(dict(list(tiles.bad.items())[:3]), ensure_ascii=False)
        return Finding("data root", WARN, f"{text}; {len(tiles.bad)} unusable: {examples}", facts)
    return Finding("data root", OK, text, facts)


def _class_images(root: str, path: pathlib.Path, table_name: str, no_tiles: DataError) -> Finding:
    """Check a root that holds neither BreakHis nor tiles with several labels."""
    try:
        found = folder_layouts.find(path, FolderSpec(table=table_name))
    except (DataError, RunError) as error:
        text = f"{root}: no images with BreakHis names; no tiles: {no_tiles}; no images with one class each: {error}"
        return Finding("data root", FAIL, text)
    classes = Counter(item.label for item in found.items)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(classes.items()))
    text = f"{root}: {len(found.items)} images with one class each, from {found.layout}: {counts}"
    facts = {"layout": found.layout, "images": len(found.items), "classes": dict(classes), "unusable": len(found.bad)}
    return Finding("data root", WARN if found.bad else OK, text, facts)


def _existing(path: pathlib.Path) -> pathlib.Path:
    """Return the folder, or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
