"""A folder and its copy in a bucket: each change passes to the other side, and a kill at any moment loses nothing."""

import json
import os
import pathlib

import pytest

from histojax.storage import mirror
from histojax.storage.bucket import Bucket
from histojax.storage.errors import BucketError
from histojax.storage.mirror import Mirror, StoppedError
from tests.helpers.buckets import ERROR, Proxy, Server

SEAL = "sha256.json"


def machine(tmp_path: pathlib.Path, name: str, address: str, **more: str) -> Mirror:
    """A folder of a machine, brought up to date."""
    made = Mirror(address, tmp_path / name / "files", tmp_path / name / "index.json", **more)
    made.pull()
    return made


def write(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder: pathlib.Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def checkpoint(step: int, state: str, series: str = "last") -> dict[str, str]:
    folder = f"checkpoints/{series}/{step}"
    return {f"{folder}/model/d/1": state, f"{folder}/{SEAL}": json.dumps({"model/d/1": "its checksum"})}


def test_another_machine_gets_what_one_has_written(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/both")
    one = machine(tmp_path, "one", address)
    files = {"config.json": "{}", "tensorboard/events 1": "e", **checkpoint(5, "five")}
    write(one.folder, {**files, ".owner": "me", ".lock": "", ".x.12.tmp": "half", "a.orbax-checkpoint-tmp/d": "half"})
    assert one.push() == len(files)
    two = machine(tmp_path, "two", address)
    assert content(two.folder) == files

    write(two.folder, {"config.json": "new", **checkpoint(10, "ten")})
    for name in checkpoint(5, "five"):
        (two.folder / name).unlink()
    assert two.push() == 3
    assert one.pull() == 3
    assert content(one.folder) == {"tensorboard/events 1": "e", "config.json": "new", **checkpoint(10, "ten")} | {
        name: text for name, text in content(one.folder).items() if name.startswith((".", "a."))
    }


def test_what_is_unchanged_is_not_transferred(proxy: Proxy, tmp_path: pathlib.Path) -> None:
    address = proxy.server.address("mirror/unchanged")
    one = machine(tmp_path, "one", address)
    write(one.folder, {f"{i}.csv": "x" for i in range(5)})
    one.push()
    proxy.requests.clear()
    assert one.push() == 0
    assert not proxy.requests
    again = machine(tmp_path, "one", address)  # a later process
    assert again.push() == 0
    assert not [path for method, path in proxy.requests if method == "PUT"]


def test_what_was_not_pushed_before_a_kill_is_kept_and_pushed(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/killed")
    one = machine(tmp_path, "one", address)
    write(one.folder, {"metrics.jsonl": "1", "a": "a"})
    one.push()
    write(one.folder, {"metrics.jsonl": "1 2", "new": "n", **checkpoint(3, "three")})
    again = machine(tmp_path, "one", address)
    kept = {"metrics.jsonl": "1 2", "a": "a", "new": "n", **checkpoint(3, "three")}
    assert content(again.folder) == kept
    assert again.unpushed() == sorted(["metrics.jsonl", "new", *checkpoint(3, "three")])
    again.push()
    assert content(machine(tmp_path, "two", address).folder) == kept


def test_the_bucket_counts_where_another_machine_went_on(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/elsewhere")
    one = machine(tmp_path, "one", address)
    write(one.folder, {"metrics.jsonl": "1", **checkpoint(3, "three")})
    one.push()
    two = machine(tmp_path, "two", address)
    write(two.folder, {"metrics.jsonl": "1 2", **checkpoint(6, "six")})
    two.push()
    write(one.folder, {"metrics.jsonl": "1 2 3 lost", "stray": "", **checkpoint(9, "a state that was given up")})
    one = machine(tmp_path, "one", address)
    assert content(one.folder) == content(two.folder)


def test_what_was_deleted_in_the_bucket_is_deleted_here(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/cleared")
    one = machine(tmp_path, "one", address)
    write(one.folder, {"a": "a", "b": "b"})
    one.push()
    Bucket(address).delete(["a"])
    assert content(machine(tmp_path, "one", address).folder) == {"b": "b"}


def test_a_deleted_copy_is_read_again(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/deleted")
    one = machine(tmp_path, "one", address)
    write(one.folder, {"a": "a", "b": "b"})
    one.push()
    (one.folder / "a").unlink()
    assert content(machine(tmp_path, "one", address).folder) == {"a": "a", "b": "b"}
    for name in ("a", "b"):
        (one.folder / name).unlink()
    one.folder.rmdir()
    assert one.push() == 0
    assert content(machine(tmp_path, "one", address).folder) == {"a": "a", "b": "b"}


@pytest.mark.parametrize("after", range(8))
def test_a_checkpoint_in_the_bucket_is_whole_after_each_request(
    proxy: Proxy, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    address = proxy.server.address(f"mirror/whole/{after}")
    one = machine(tmp_path, "one", address)
    write(one.folder, {"metrics.jsonl": "1", **checkpoint(3, "three")})
    one.push()
    write(one.folder, {"metrics.jsonl": "1 2", **checkpoint(6, "six")})
    for name in checkpoint(3, "three"):
        (one.folder / name).unlink()
    changes = 0

    def stop(method: str, path: str) -> bytes | None:
        nonlocal changes
        changes += method in ("PUT", "DELETE", "POST")
        return b"<Error><Code>AccessDenied</Code></Error>" if changes > after and method != "GET" else None

    monkeypatch.setattr(mirror, "_AT_ONCE", 1)
    proxy.disturb = stop
    if after < 5:
        with pytest.raises(BucketError, match="these credentials may not do this"):
            one.push()
    else:
        one.push()
    proxy.disturb = lambda method, path: None
    two = machine(tmp_path, "two", address)
    steps = {name.split("/")[2] for name in content(two.folder) if name.startswith("checkpoints/")}
    assert steps >= {"3"} if after < 3 else steps >= {"6"}
    for step, state in (("3", "three"), ("6", "six")):
        found = {name: text for name, text in content(two.folder).items() if f"/{step}/" in name}
        assert found in ({}, checkpoint(int(step), state))
    again = machine(tmp_path, "one", address)
    again.push()
    assert content(again.folder).keys() >= checkpoint(6, "six").keys()
    assert Bucket(address).list() == sorted(content(again.folder)), "something is left behind"


def test_a_checkpoint_without_its_checksums_is_neither_written_nor_read(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/unsealed")
    one = machine(tmp_path, "one", address)
    write(one.folder, {"checkpoints/last/4/model/d/1": "being written"})
    assert one.push() == 0
    Bucket(address).write("checkpoints/last/2/model/d/1", b"of a killed process")
    two = machine(tmp_path, "two", address)
    assert content(two.folder) == {}
    two.push()
    assert Bucket(address).list() == [], "what a killed process left is deleted by the next push"


def test_the_newest_checkpoint_is_written_first(proxy: Proxy, tmp_path: pathlib.Path) -> None:
    one = machine(tmp_path, "one", proxy.server.address("mirror/order"))
    write(one.folder, {**checkpoint(9, "nine"), **checkpoint(10, "ten"), **checkpoint(10, "t", "best"), "z.csv": ""})
    proxy.requests.clear()
    one.push()
    order = [path.partition("mirror/order/")[2].partition("?")[0] for method, path in proxy.requests if method == "PUT"]
    assert order[0] == "z.csv"
    assert [path.split("/")[2] for path in order[1:]] == ["10"] * 4 + ["9"] * 2
    assert order.index(f"checkpoints/last/10/{SEAL}") > order.index("checkpoints/last/10/model/d/1")


def test_a_file_that_vanishes_while_it_is_pushed_leaves_its_checkpoint_unsealed(
    proxy: Proxy, tmp_path: pathlib.Path
) -> None:
    address = proxy.server.address("mirror/vanishes")
    one = machine(tmp_path, "one", address)
    write(one.folder, checkpoint(3, "three"))
    listed = one.unpushed()
    (one.folder / "checkpoints/last/3/model/d/1").unlink()
    one.unpushed = lambda: listed  # type: ignore[method-assign]  # as it was before the file vanished
    one.push()
    assert f"checkpoints/last/3/{SEAL}" not in Bucket(address).list()


def test_a_push_stops_when_it_is_told_to(server: Server, tmp_path: pathlib.Path) -> None:
    one = machine(tmp_path, "one", server.address("mirror/stop"))
    write(one.folder, {"a": "a"})
    with pytest.raises(StoppedError):
        one.push(lambda: True)
    assert one.push() == 1


def test_a_mirror_of_one_name_leaves_others_alone(server: Server, tmp_path: pathlib.Path) -> None:
    address = server.address("mirror/only")
    Bucket(address).write("other.csv", b"not ours")
    Bucket(address).write("table.failed.csv", b"ours")
    one = machine(tmp_path, "one", address, only="table")
    assert content(one.folder) == {"table.failed.csv": "ours"}
    write(one.folder, {"table.csv": "new", "not this.csv": ""})
    (one.folder / "table.failed.csv").unlink()
    one.push()
    assert Bucket(address).list() == ["other.csv", "table.csv"]


def test_a_file_that_changes_again_is_pushed_again(server: Server, tmp_path: pathlib.Path) -> None:
    one = machine(tmp_path, "one", server.address("mirror/again"))
    write(one.folder, {"metrics.jsonl": "1"})
    one.push()
    write(one.folder, {"metrics.jsonl": "2"})  # of the same size
    os.utime(one.folder / "metrics.jsonl", ns=(1, 1))
    assert one.push() == 1
    found = one.bucket.read("metrics.jsonl")
    assert found is not None
    assert found.content == b"2"


def test_an_error_leaves_the_rest_to_the_next_push(
    proxy: Proxy, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histojax.storage.bucket._WAITS", ())
    monkeypatch.setattr("histojax.storage.bucket._RETRIES", {"max_retries": 1, "initial_delay": "1ms"})
    one = machine(tmp_path, "one", proxy.server.address("mirror/error"))
    write(one.folder, {"a": "a", "b": "b"})
    proxy.disturb = lambda method, path: ERROR if path.split("?")[0].endswith("/b") else None
    with pytest.raises(BucketError, match="mirror/error/b: no answer from the server"):
        one.push()
    proxy.disturb = lambda method, path: None
    one.push()
    assert one.bucket.list() == ["a", "b"]
