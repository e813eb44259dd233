"""What `histojax doctor` asks of a machine without jax: versions, memory, limits, disks, images, compiled programs.

Every answer is a finding: ok, warn or fail, with words that say what is wrong and what to do.
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
from data_pipelines.listing import list_files
from data_pipelines.liver_tiles import layouts, table
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.machine import cores

OK, WARN, FAIL = "ok", "warn", "fail"
_SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")
_BLOCK = 4 << 20
_PROBE = 64 << 20  # bytes written and read to time a disk
_LONGEST = 2.0  # seconds of writing
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
      check: the question, in a word or two.
      level: `ok`, `warn` (it works, but) or `fail` (it will not).
      text: what was found; where it is not ok, what to do.
      facts: the same in numbers, for programs.
    """

    check: str
    level: str
    text: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def versions() -> list[Finding]:
    """Python and the libraries; whether they are those that this version asks for, and fit each other."""
    found = {name: _version(name) for name in _SHOWN}
    facts = {"python": platform.python_version(), "histojax": _version("histojax"), **found}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in facts.items())
    findings = [Finding("versions", OK, text, facts)]
    for line in importlib.metadata.requires("histojax") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = _version(wanted.name)
        if version is None:
            findings.append(Finding("versions", FAIL, f"{wanted.name} is missing: pip install '{wanted}'"))
        elif not wanted.specifier.contains(version, prereleases=True):
            text = f"{wanted.name} {version} is not what histojax was tested with: pip install '{wanted}'"
            findings.append(Finding("versions", WARN, text))
    return findings + _pairs({name: _version(name) for name in ("jax", "jaxlib", *_PLUGINS)})


def _pairs(found: Mapping[str, str | None]) -> list[Finding]:
    """jax, jaxlib and the plugins of GPUs are released together; others than equal versions may not work together."""
    jaxlib, findings = found["jaxlib"], []
    if found["jax"] and jaxlib and found["jax"] != jaxlib:
        text = f"jax {found['jax']} with jaxlib {jaxlib}: pip install 'jax=={found['jax']}' 'jaxlib=={found['jax']}'"
        findings.append(Finding("versions", WARN, text))
    for name in _PLUGINS:
        if found.get(name) and found[name] != jaxlib:
            text = f"{name} {found[name]} with jaxlib {jaxlib}: GPUs may not be found; pip install -U 'histojax[cuda]'"
            findings.append(Finding("versions", FAIL, text))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def memory() -> Finding:
    """Memory and processors that this process may use, which in a container is less than the machine has."""
    fields = dict(line.split(":", 1) for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    where = "of the machine"
    if limit is not None and limit < total:
        total, free, where = limit, min(free, limit - (used or 0)), "of the container"
    count = cores()
    facts = {"memory_bytes": total, "free_bytes": free, "cores": count}
    text = f"{_size(free)} free {where}'s {_size(total)}; {count} cores"
    if free < 2 * _GIB:
        text += ": too little for training; end other programs, or lower train.batch_size and data.workers"
        return Finding("memory", WARN, text, facts)
    return Finding("memory", OK, text, facts)


def _cgroup(name: str) -> int | None:
    try:
        word = pathlib.Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(word) if word.isdigit() else None


def limits(shared_memory: pathlib.Path = pathlib.Path("/dev/shm")) -> list[Finding]:
    """What processes that decode images (data.workers) and checkpoints run into: open files, shared memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    findings = [Finding("open files", OK, f"at most {soft}", {"soft": soft, "hard": hard})]
    if soft != resource.RLIM_INFINITY and soft < 1024:
        text = f"at most {soft}: checkpoints and data.workers need about 1024; ulimit -n {min(max(hard, soft), 65536)}"
        findings = [Finding("open files", WARN, text, {"soft": soft, "hard": hard})]
    try:
        free = shutil.disk_usage(shared_memory).free
    except OSError as error:
        text = f"{shared_memory}: {error.strerror}; with data.workers above 0 images pass through it"
        return [*findings, Finding("shared memory", WARN, text)]
    text = f"{_size(free)} free in {shared_memory}"
    level = OK if free >= _GIB else WARN
    if level == WARN:
        text += ": little for data.workers above 0; in a container docker run --shm-size=8g, in Kubernetes an emptyDir"
    return [*findings, Finding("shared memory", level, text, {"free_bytes": free})]


def disk(name: str, directory: str) -> Finding:
    """Whether a folder, or where it will be made, can be written; how fast, and how much room is left.

    The file that is written for it is removed again.
    """
    if "://" in directory:
        return Finding(name, OK, f"{directory}: not on this machine; not measured")
    place = _existing(pathlib.Path(directory).expanduser().absolute())
    try:
        written, read = _speeds(place)
    except OSError as error:
        text = f"{directory}: cannot be written ({error.strerror}); name another place, or have its rights changed"
        return Finding(name, FAIL, text)
    free = shutil.disk_usage(place).free
    facts = {"write_bytes_per_second": written, "read_bytes_per_second": read, "free_bytes": free}
    text = f"{directory}: writes {_size(written)}/s, reads {_size(read)}/s, {_size(free)} free"
    if free < _GIB:
        return Finding(name, FAIL, f"{text}: full; checkpoints and prepared images need room", facts)
    if free < 10 * _GIB:
        return Finding(name, WARN, f"{text}: little; prepared images take what their archive takes", facts)
    if min(written, read) < 20e6:
        return Finding(name, WARN, f"{text}: slow; runs will wait for it. Is there a local disk?", facts)
    return Finding(name, OK, text, facts)


def _speeds(place: pathlib.Path) -> tuple[float, float]:
    """Bytes a second, written and read past the system's cache as far as it can be told to."""
    block = os.urandom(_BLOCK)
    handle, path = tempfile.mkstemp(prefix=".histojax-doctor-", dir=place)
    try:
        began, size = time.perf_counter(), 0
        while size < _PROBE and time.perf_counter() - began < _LONGEST:
            size += os.write(handle, block)
        os.fsync(handle)
        written = size / (time.perf_counter() - began)
        with contextlib.suppress(OSError):  # a file system without
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        began, got = time.perf_counter(), 0
        while (count := len(os.read(handle, _BLOCK))) and time.perf_counter() - began < _LONGEST:
            got += count
        return written, got / (time.perf_counter() - began)
    finally:
        os.close(handle)
        os.unlink(path)


def compile_cache(directory: str) -> Finding:
    """Where compiled programs are kept; empty: nowhere."""
    if not directory:
        return Finding("compile cache", WARN, "none: every start compiles anew; set JAX_COMPILATION_CACHE_DIR")
    if "://" in directory:
        return Finding("compile cache", OK, f"{directory}: not on this machine; not looked into")
    folder = pathlib.Path(directory)
    try:
        with tempfile.NamedTemporaryFile(prefix=".histojax-doctor-", dir=_existing(folder)):
            pass
    except OSError as error:
        text = f"{folder}: cannot be written ({error.strerror}), every start compiles anew (minutes)"
        return Finding("compile cache", WARN, f"{text}; set JAX_COMPILATION_CACHE_DIR or HISTOJAX_DATA")
    sizes = [entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()] if folder.is_dir() else []
    facts = {"directory": directory, "files": len(sizes), "bytes": sum(sizes)}
    return Finding("compile cache", OK, f"{folder}: {len(sizes)} files, {_size(sum(sizes))}", facts)


def data_root(root: str) -> Finding:
    """Whether `data.root` is there, what it looks like, and how many images lie below it. No pixel is read."""
    path, spec = pathlib.Path(root).expanduser(), TilesSpec()
    if not path.exists():
        text = f"{root}: no such file or folder. On several hosts it must be there on each; what is it called here?"
        return Finding("data root", FAIL, text)
    if archive.is_archive(path) and path.is_file():
        size = path.stat().st_size
        text = f"{root}: an archive of {_size(size)}; unpacked at the first run"
        return Finding("data root", OK, text, {"layout": "archive", "bytes": size})
    if path.is_file():
        if not path.name.lower().endswith(table.SUFFIXES):
            kinds = ", ".join((*archive.SUFFIXES, *table.SUFFIXES))
            return Finding("data root", FAIL, f"{root}: a file that is none of {kinds}; name its folder")
        path, spec = path.parent, TilesSpec(layout="table", table=path.name)
    named: Counter[str] = Counter()
    for image in [] if spec.table else list_files(path, (".png",)):
        with contextlib.suppress(filenames.BadNameError):
            named[filenames.parse(image.name).magnification] += 1
    if named:
        facts: dict[str, Any] = {"layout": "breakhis", "images": named.total(), "magnifications": dict(named)}
        counts = ", ".join(f"{count} at {name}" for name, count in sorted(named.items()))
        return Finding("data root", OK, f"{root}: {named.total()} images with BreakHis's names ({counts})", facts)
    try:
        found = layouts.find(path, spec)
    except DataError as error:
        return Finding("data root", FAIL, f"no images with BreakHis's names, and as tiles: {error}")
    facts = {"layout": found.layout, "images": len(found.items), "labels": found.labels, "unusable": len(found.bad)}
    text = f"{root}: {len(found.items)} images of tiles, labels by {found.layout}: {', '.join(found.labels)}"
    if found.bad:
        some = json.dumps(dict(list(found.bad.items())[:3]), ensure_ascii=False)
        return Finding("data root", WARN, f"{text}; {len(found.bad)} cannot be used: {some}", facts)
    return Finding("data root", OK, text, facts)


def _existing(path: pathlib.Path) -> pathlib.Path:
    """The folder, or the nearest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _size(count: float) -> str:
    """Bytes in words, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
