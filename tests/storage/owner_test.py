"""The owner of a folder in a bucket: one at a time, and none for long after it died."""

import json
import threading

import pytest

from histojax.core import locks
from histojax.storage.bucket import Bucket
from histojax.storage.mirror import OWNER
from histojax.storage.owner import OwnerObject
from tests.helpers.buckets import Proxy, Server


def foreign(bucket: Bucket, **facts: str) -> bytes:
    """Write the mark of another process; return what was written."""
    mark = json.dumps(json.loads(OwnerObject(bucket)._content()) | {"token": "other"} | facts)
    content = f"{mark}\n0\n".encode()
    bucket.write(OWNER, content)
    return content


def test_one_process_owns_a_folder(server: Server) -> None:
    bucket = Bucket(server.address("owner/one"))
    first, second = OwnerObject(bucket), OwnerObject(bucket)
    assert first.acquire() == ""
    assert "pid" in second.acquire()
    first.verify()
    first.release()
    assert bucket.list() == []
    assert second.acquire() == ""
    second.release()


def test_of_many_at_once_one_becomes_the_owner(server: Server) -> None:
    bucket = Bucket(server.address("owner/many"))
    owners = [OwnerObject(bucket) for _ in range(6)]
    answers: list[str] = []
    threads = [threading.Thread(target=lambda owner=owner: answers.append(owner.acquire())) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("") == 1
    for owner in owners:
        owner.release()


def test_a_dead_owner_of_this_machine_is_replaced_at_once(server: Server) -> None:
    bucket = Bucket(server.address("owner/dead"))
    foreign(bucket, start="0")  # another process has its number now
    owner = OwnerObject(bucket)
    assert owner.acquire() == ""
    owner.release()


def test_an_owner_elsewhere_is_replaced_without_a_sign_of_life(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_LOST", 0.5)
    bucket = Bucket(server.address("owner/elsewhere"))
    foreign(bucket, machine="another one")
    owner = OwnerObject(bucket)
    assert owner.acquire() == ""
    owner.release()


def test_an_owner_elsewhere_with_a_sign_of_life_is_not_replaced(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LOST", 60)
    bucket = Bucket(server.address("owner/alive"))
    other = foreign(bucket, machine="another one", host="far-away")
    timer = threading.Timer(0.5, lambda: bucket.write(OWNER, other.replace(b"\n0\n", b"\n1\n")))
    timer.start()
    assert "far-away" in OwnerObject(bucket).acquire()
    timer.join()


def test_a_sign_of_life_changes_the_mark_and_keeps_its_owner(server: Server) -> None:
    bucket = Bucket(server.address("owner/beat"))
    owner = OwnerObject(bucket)
    owner.acquire()
    before = owner._read()
    owner._touch()
    after = owner._read()
    assert before is not None
    assert after is not None
    assert before[0] == after[0]
    assert before[1] != after[1]
    owner.release()


def test_an_owner_whose_answer_got_lost_knows_itself(proxy: Proxy) -> None:
    bucket = Bucket(proxy.server.address("owner/lost"))
    owner = OwnerObject(bucket)
    bucket.write(OWNER, owner._marked(owner._content()))  # written, and the answer did not arrive
    assert owner.acquire() == ""
    owner.verify()
    owner.release()
    assert bucket.list() == []


def test_an_owner_that_was_replaced_is_told(server: Server) -> None:
    bucket = Bucket(server.address("owner/replaced"))
    owner = OwnerObject(bucket)
    owner.acquire()
    foreign(bucket)
    with pytest.raises(locks.RunError, match="owner/replaced: another process has taken over"):
        owner.verify()
    owner.release()
    assert bucket.list() == [OWNER], "the other one's mark must stay"
