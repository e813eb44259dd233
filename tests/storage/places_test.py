"""Local copies of inputs and outputs in buckets."""

import contextlib
import pathlib
import time

import pytest

from histojax.core.errors import RunError
from histojax.storage import places
from histojax.storage.bucket import Bucket
from histojax.storage.errors import BucketError
from tests.helpers.buckets import Proxy, Server


@pytest.fixture(autouse=True)
def data_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOJAX_DATA", str(tmp_path / "data"))


def test_an_object_and_a_folder_are_copied(server: Server) -> None:
    lab = Bucket(server.address("places"))
    for key in ("set/a.png", "set/deep/b.png", "set.tar.gz", "set.tar.gz.txt"):
        lab.write(key, key.encode())
    archive = places.local(server.address("places/set.tar.gz"))
    assert archive.name == "set.tar.gz"
    assert archive.read_bytes() == b"set.tar.gz"
    folder = places.local(server.address("places/set/"))
    assert folder.name == "set"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["a.png", "deep/b.png"]
    lab.write("set/a.png", b"new")
    lab.delete(["set/deep/b.png"])
    folder = places.local(server.address("places/set"))
    assert [path.read_bytes() for path in folder.rglob("*") if path.is_file()] == [b"new"]


def test_of_a_run_the_best_checkpoint_is_copied(server: Server) -> None:
    run = Bucket(server.address("places/run"))
    for series in ("best", "last"):
        run.write(f"checkpoints/{series}/3/sha256.json", b"{}")
    run.write("config.json", b"{}")
    folder = places.local(server.address("places/run"))
    assert (folder / "checkpoints/best/3/sha256.json").is_file()
    assert not (folder / "checkpoints/last").exists()
    run.delete(["checkpoints/best/3/sha256.json"])
    assert (places.local(server.address("places/run")) / "checkpoints/last/3/sha256.json").is_file()


def test_what_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(BucketError, match="places/nothing: no such object or folder in the bucket"):
        places.local(server.address("places/nothing"))


def test_an_unchanged_copy_is_not_read_again(proxy: Proxy) -> None:
    Bucket(proxy.server.address("places")).write("big.svs", bytes(5000))
    address = proxy.server.address("places/big.svs")
    places.local(address)
    proxy.sent = 0
    proxy.requests.clear()
    path = places.local(address)
    assert path.stat().st_size == 5000
    ranges = [method for method, path in proxy.requests if path.partition("?")[0].endswith("big.svs")]
    assert ranges
    assert proxy.sent < 5000, "the content was sent again"


def test_an_output_folder_is_written_also_after_an_error(server: Server) -> None:
    address = server.address("places/out")
    with contextlib.suppress(ZeroDivisionError), places.written(address) as folder:
        assert not folder.exists(), "some commands want to create it"
        folder.mkdir()
        (folder / "a.csv").write_text("half")
        raise ZeroDivisionError
    assert Bucket(address).list() == ["a.csv"]
    with places.written(address) as folder:
        assert (folder / "a.csv").read_text() == "half", "the next command resumes from there"
        (folder / "a.csv").write_text("whole")
    found = Bucket(address).read("a.csv")
    assert found is not None
    assert found.content == b"whole"


def test_an_output_file_is_written_with_what_belongs_to_it(server: Server) -> None:
    lab = Bucket(server.address("places/files"))
    lab.write("other.csv", b"1")
    with places.written(server.address("places/files/table.csv")) as path:
        path.write_text("rows")
        path.with_name("table.failed.csv").write_text("none")
    assert lab.list() == ["other.csv", "table.csv", "table.failed.csv"]


def test_an_output_is_copied_while_the_command_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_EVERY", 0.05)
    address = server.address("places/running")
    with places.written(address) as folder:
        folder.mkdir()
        (folder / "first.csv").write_text("1")
        for _ in range(100):
            if "first.csv" in Bucket(address).list():
                break
            time.sleep(0.05)
        assert "first.csv" in Bucket(address).list()
        with pytest.raises(RunError, match="places/running is in use by another process"):
            places.written(address).__enter__()
    assert Bucket(address).list() == ["first.csv"]


def test_paths_stay_paths(tmp_path: pathlib.Path) -> None:
    assert places.local(tmp_path) == tmp_path
    assert places.absolute("gs://b-1/a") == "gs://b-1/a"
    assert places.absolute(tmp_path / "x" / ".." / "y") == str(tmp_path.resolve() / "y")
    assert places.exists("s3://b-1/a")
    assert not places.exists(tmp_path / "none")
