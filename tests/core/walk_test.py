"""The walk through a folder of inputs finds each file once, and says what it does not read."""

import errno
import os
import pathlib
import random
import time

import pytest

from histojax.core import walk
from histojax.core.errors import RunError
from histojax.core.locks import exclusive_lock
from histojax.core.walk import Files, find_files

SUFFIXES = (".png", ".tar.gz")


def plant(root: pathlib.Path, *names: str | bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def below(root: pathlib.Path, found: Files) -> list[str]:
    return [os.path.relpath(path, root) for path in found.paths]


def test_files_are_found_in_order_and_others_are_counted(tmp_path: pathlib.Path) -> None:
    plant(tmp_path, "b/2.png", "b/10.PNG", "a.png", "z.tar.gz", "b/c/x.png", "b/c.webp", "d.webp", "e.gif", "notes.txt")
    plant(tmp_path, "b/._2.png", ".ipynb_checkpoints/2.png", "__MACOSX/b/2.png", "README")
    found = find_files(tmp_path, SUFFIXES)
    assert below(tmp_path, found) == ["a.png", "z.tar.gz", "b/10.PNG", "b/2.png", "b/c/x.png"]
    assert found.passed_over == {
        "": (1, f"{tmp_path}/README"),
        ".gif": (1, f"{tmp_path}/e.gif"),
        ".txt": (1, f"{tmp_path}/notes.txt"),
        ".webp": (2, f"{tmp_path}/d.webp"),
    }
    (line,) = found.report()
    assert line.endswith(f": 2 .webp ({tmp_path}/d.webp), 1 .gif ({tmp_path}/e.gif)")
    os.chdir(tmp_path)
    assert find_files("./b", SUFFIXES).paths == ("./b/10.PNG", "./b/2.png", "./b/c/x.png")


def test_links_are_followed_once_and_the_others_are_named(tmp_path: pathlib.Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    plant(root, "m/1.png")
    plant(outside, "2.png", "deep/3.png")
    links = {
        "a.png": "m/1.png", "up": "..", "m/self": "../m", "b": "../outside", "c": "../outside", "c.png": "b/2.png",
        "lost.png": "nowhere", "gone": "/no/such/folder", "loop.png": "loop.png",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    found = find_files(root, SUFFIXES)
    assert below(root, found) == ["b/2.png", "b/deep/3.png", "m/1.png"]
    assert found.repeated == {f"{root}/a.png": f"{root}/m/1.png", f"{root}/c.png": f"{root}/b/2.png"}
    assert found.loops == {f"{root}/c": f"{outside}", f"{root}/m/self": f"{root}/m"}
    assert found.broken == {
        f"{root}/gone": "broken link",
        f"{root}/loop.png": "link to itself",
        f"{root}/lost.png": "broken link",
        f"{root}/pipe.png": "not a regular file",
    }
    assert "4 × not a readable file" in found.report()[0]
    assert found.report()[1] == f"2 × link to a folder that is read already: {root}/c, {root}/m/self"


def test_links_between_siblings_do_not_multiply_files(tmp_path: pathlib.Path) -> None:
    for i in range(40):
        plant(tmp_path, f"{i}/tile.png")
        for j in range(40):
            (tmp_path / str(i) / f"to_{j}").symlink_to(f"../{j}")
    assert len(find_files(tmp_path, SUFFIXES).paths) == 40


def test_folders_of_results_are_passed_over_but_not_the_root(tmp_path: pathlib.Path) -> None:
    plant(tmp_path, "slide.png", "out/slide/overlay.png", "out/slide/slide.json", "explained/1.png")
    plant(tmp_path, "explained/explanations.json", "run/config.json", "run/run.json", "run/x/1.png", "own/config.json")
    plant(tmp_path, "own/1.png", "written/2.png", "out/kept.png")
    found = find_files(tmp_path, SUFFIXES, skip=[tmp_path / "written", tmp_path])
    assert below(tmp_path, found) == ["slide.png", "out/kept.png", "own/1.png"]
    assert found.results == (f"{tmp_path}/explained", f"{tmp_path}/run", f"{tmp_path}/out/slide")
    assert found.report()[0].startswith("3 × folder that histojax wrote is passed over: ")
    assert below(tmp_path, find_files(tmp_path / "explained", SUFFIXES)) == ["explained/1.png"]


def test_prepared_data_inside_the_folder_are_no_inputs(tmp_path: pathlib.Path) -> None:
    plant(tmp_path, "1.png", "a/extracted/2.png", "b/prepared/3.png", "c/extracted/4.png")
    for name in "ab":
        with exclusive_lock(tmp_path / name):
            pass
    assert below(tmp_path, find_files(tmp_path, SUFFIXES)) == ["1.png", "c/extracted/4.png"]


def test_names_that_are_not_utf8_are_kept_and_printed(tmp_path: pathlib.Path) -> None:
    plant(tmp_path, b"\xff\n/\xfe.png", b"\xff.gif")
    found = find_files(tmp_path, SUFFIXES)
    assert os.fsencode(found.paths[0]).endswith(b"/\xff\n/\xfe.png")
    assert found.report()[0].endswith("/\\xff.gif)")


@pytest.mark.parametrize("name", ["locked", "linked"])
def test_an_unreadable_folder_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plant(tmp_path / "root", "1.png")
    plant(tmp_path, "locked/2.png")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "locked")
    scandir, stat = os.scandir, os.stat

    def refuse(path: str) -> None:
        if os.path.basename(path) == name:
            raise OSError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda path, **options: refuse(str(path)) or stat(path, **options))
    with pytest.raises(RunError, match=rf"/{name}: cannot be read \(Permission denied\), .* chmod -R u\+rX") as caught:
        find_files(tmp_path / ("root" if name == "linked" else ""), SUFFIXES)
    assert "so inputs may be missing" in str(caught.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_storage_errors_are_retried_and_then_raised(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    plant(tmp_path, "far/1.png", "2.png")
    scandir, failures = os.scandir, [2]

    def flaky(path: str) -> object:
        if path.endswith("far") and failures[0]:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", flaky)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert len(find_files(tmp_path, SUFFIXES).paths) == 2
    failures[0] = 99
    with pytest.raises(RunError, match=r"/far: cannot be read .* check the storage and rerun"):
        find_files(tmp_path, SUFFIXES)


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_give_each_file_once(tmp_path: pathlib.Path, seed: int) -> None:
    """Names of any bytes, links to files, folders, parents and nothing: compared with the set of real files."""
    rng = random.Random(seed)
    root = tmp_path / "root"
    folders, files = [os.fsencode(root)], []
    os.mkdir(root)
    for number in range(60):
        name = b"%d" % number + bytes(rng.choices([b for b in range(1, 256) if b != 47], k=3))
        place = os.path.join(rng.choice(folders), name)
        kind = rng.random()
        if kind < 0.3:
            os.mkdir(place)
            folders.append(place)
        elif kind < 0.6:
            open(place + b".png", "wb").close()
            files.append(place + b".png")
        else:
            target = rng.choice([*folders, *files, b"nowhere", place, os.fsencode(tmp_path)])
            os.symlink(target, place + rng.choice([b"", b".png"]))
    found = find_files(root, SUFFIXES)
    assert sorted(map(os.fsencode, found.paths)) == sorted(files)
    assert all(os.path.islink(link) for link in (*found.repeated, *found.loops, *found.broken))
    assert list(found.paths) == sorted(found.paths, key=walk.order)
    for line in found.report():
        line.encode()
