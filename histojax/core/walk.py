"""The walk through a folder of inputs: which files are read, and which are not, with the reason."""

import dataclasses
import enum
import errno
import os
import pathlib
import stat
from collections.abc import Iterable

from histojax.core.errors import RunError
from histojax.core.printable import printable
from histojax.core.retries import with_backoff

# A folder that holds such entries was written by this program: a run, a finished slide, explanations, prepared data.
_RESULTS = (
    {"config.json", "run.json"},
    {"slide.json"},
    {"explanations.json"},
    {"view.json"},
    {".lock", "prepared"},
    {".lock", "extracted"},
)
# Files that users take for images or slides. They are named if a command does not read them.
_PICTURES = frozenset(
    {
        ".avif", ".bif", ".bmp", ".czi", ".dcm", ".gif", ".heic", ".j2k", ".jfif", ".jp2", ".jpeg", ".jpg", ".jpx",
        ".jxl", ".mrxs", ".ndpi", ".png", ".ppm", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".webp",
    }
)  # fmt: skip
_LISTED = 5  # names in one line of a report


@dataclasses.dataclass(frozen=True)
class Files:
    """The files below a folder. Paths begin with the folder as it was given; folders come after the files beside them.

    Attributes:
      paths: files with a wanted suffix, each file once: under its own name if that is below the folder.
      repeated: link with a wanted suffix -> the path in `paths` of the file to which it leads.
      broken: path -> why it cannot be read: a link to nothing or to itself (with any suffix, because it may have led to
        a folder of inputs), or a pipe, socket or device with a wanted suffix.
      loops: link -> the folder to which it leads, which is read under another name.
      results: folders that this program wrote, which are not entered.
      passed_over: lower-case suffix of the other files -> their number, and the first of them.
    """

    paths: tuple[str, ...]
    repeated: dict[str, str]
    broken: dict[str, str]
    loops: dict[str, str]
    results: tuple[str, ...]
    passed_over: dict[str, tuple[int, str]]

    def with_links(self) -> list[pathlib.Path]:
        """Return the files under all their names, sorted."""
        return sorted(map(pathlib.Path, (*self.paths, *self.repeated)))

    def report(self) -> list[str]:
        """Return a line for each kind of file that is not read and that a user may expect to be read."""
        pictures = {suffix: entry for suffix, entry in self.passed_over.items() if suffix in _PICTURES}
        lines = []
        if pictures:
            lines.append(f"passed over, because this command does not read them: {describe(pictures)}")
        if self.broken:
            lines.append(_counted("not a readable file", [f"{path}: {why}" for path, why in self.broken.items()]))
        if self.loops:
            lines.append(_counted("link to a folder that is read already", self.loops))
        if self.results:
            lines.append(_counted("folder that histojax wrote is passed over", self.results))
        return lines


def describe(passed_over: dict[str, tuple[int, str]]) -> str:
    """Return `Files.passed_over` as text, the most frequent suffix first; "nothing" if it is empty."""
    ordered = sorted(passed_over.items(), key=lambda item: (-item[1][0], item[0]))
    parts = [f"{count} {suffix or 'without a suffix'} ({printable(first)})" for suffix, (count, first) in ordered]
    return ", ".join(parts) or "nothing"


def find_files(root: str | os.PathLike[str], suffixes: tuple[str, ...], skip: Iterable[os.PathLike[str]] = ()) -> Files:
    """Find the files below a folder of inputs, the one way for all commands.

    Hidden files and folders (`._a.tif`, `.ipynb_checkpoints`) and `__MACOSX` are ignored. Links are followed, and each
    folder is entered once, so that circular links end. Transient storage errors are retried.

    Args:
      root: the folder; entered even if its own name is hidden.
      suffixes: of the wanted files, lower case.
      skip: folders that are not entered, such as the folder that the command writes to.

    Raises:
      RunError: a folder cannot be read; the message names it.
    """
    walk = _Walk(os.fspath(root), suffixes, {os.path.realpath(folder) for folder in skip})
    return walk.run()


def check_readable(folder: str) -> None:
    """Verify that a folder, if it is one, can be listed.

    Raises:
      RunError: it cannot.
    """
    if os.path.isdir(folder):
        _entries(folder, folder)


def order(path: str) -> list[tuple[bool, str]]:
    """Return the sort key of a path: files come before the folders beside them."""
    *folders, name = path.split(os.sep)
    return [*((True, folder) for folder in folders), (False, name)]


class _Kind(enum.Enum):
    FILE = enum.auto()
    FOLDER = enum.auto()
    LINK = enum.auto()
    OTHER = enum.auto()  # a pipe, socket or device


def _kind(entry: os.DirEntry[str]) -> _Kind:
    if entry.is_symlink():
        return _Kind.LINK
    if entry.is_dir(follow_symlinks=False):
        return _Kind.FOLDER
    return _Kind.FILE if entry.is_file(follow_symlinks=False) else _Kind.OTHER


def _entries(folder: str, root: str) -> dict[str, _Kind]:
    """Return the kind of each entry of a folder.

    Raises:
      RunError: the folder, which is below `root`, cannot be read.
    """

    def entries() -> dict[str, _Kind]:
        with os.scandir(folder) as found:
            return {entry.name: _kind(entry) for entry in found}

    try:
        return with_backoff(printable(folder), entries)
    except OSError as error:
        raise _unreadable(folder, root, error) from error


def _unreadable(path: str, root: str, error: OSError) -> RunError:
    permission = error.errno in (errno.EACCES, errno.EPERM)
    remedy = f"make it readable: chmod -R u+rX '{printable(path)}'" if permission else "check the storage and rerun"
    away = "" if path == root else f", or move it out of {printable(root)}"
    reason = error.strerror or error
    return RunError(f"{printable(path)}: cannot be read ({reason}), so inputs may be missing; {remedy}{away}")


class _Walk:
    """One walk. Files and folders are known by their real path, so that a link is compared with what it leads to."""

    def __init__(self, root: str, suffixes: tuple[str, ...], skip: set[str]):
        self._root, self._suffixes, self._skip = root, suffixes, skip
        self._folders: set[str] = set()
        self._files: dict[str, str] = {}  # real path -> path
        self._folder_links: list[str] = []
        self._file_links: list[str] = []
        self._broken: dict[str, str] = {}
        self._loops: dict[str, str] = {}
        self._results: list[str] = []
        self._passed_over: dict[str, tuple[int, str]] = {}

    def run(self) -> Files:
        self._enter(self._root, os.path.realpath(self._root))
        # Links come last, so that a file below the root is listed under its own name.
        while self._folder_links:
            link = self._folder_links.pop(0)
            real = os.path.realpath(link)
            if real in self._folders:
                self._loops[link] = real
            else:
                self._enter(link, real)
        repeated = {}
        for link in sorted(self._file_links, key=order):
            first = self._files.setdefault(os.path.realpath(link), link)
            if first != link:
                repeated[link] = first
        return Files(
            tuple(sorted(self._files.values(), key=order)),
            repeated,
            dict(sorted(self._broken.items(), key=lambda item: order(item[0]))),
            self._loops,
            tuple(sorted(self._results, key=order)),
            self._passed_over,
        )

    def _enter(self, folder: str, real: str) -> None:
        """Read a folder and the folders below it, but leave links for later."""
        pending = [(folder, real)]
        while pending:
            folder, real = pending.pop()
            if real in self._folders or (real in self._skip and folder != self._root):
                continue
            self._folders.add(real)
            entries = _entries(folder, self._root)
            if folder != self._root and any(marks <= entries.keys() for marks in _RESULTS):
                self._results.append(folder)
                continue
            for name, kind in entries.items():
                if name.startswith(".") or name == "__MACOSX":
                    continue
                if kind is _Kind.LINK:
                    self._add_link(os.path.join(folder, name))
                elif kind is _Kind.FOLDER:
                    pending.append((os.path.join(folder, name), os.path.join(real, name)))
                else:
                    self._add(os.path.join(folder, name), os.path.join(real, name), kind is _Kind.FILE)

    def _add_link(self, link: str) -> None:
        try:
            mode = with_backoff(printable(link), lambda: os.stat(link)).st_mode
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise _unreadable(link, self._root, error) from error
            self._broken[link] = "broken link" if error.errno != errno.ELOOP else "link to itself"
            return
        if stat.S_ISDIR(mode):
            self._folder_links.append(link)
        elif link.lower().endswith(self._suffixes) and stat.S_ISREG(mode):
            self._file_links.append(link)
        else:
            self._add(link, link, stat.S_ISREG(mode))

    def _add(self, path: str, real: str, regular: bool) -> None:
        if not path.lower().endswith(self._suffixes):
            suffix = os.path.splitext(path)[1].lower()
            count, first = self._passed_over.get(suffix, (0, path))
            self._passed_over[suffix] = (count + 1, first)
        elif regular:
            self._files[real] = path
        else:
            self._broken[path] = "not a regular file"


def _counted(what: str, names: Iterable[str]) -> str:
    """Return a count and the first names: "2 × broken link: a, b"."""
    names = list(map(printable, names))
    more = f", … and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} × {what}: {', '.join(names[:_LISTED])}{more}"
