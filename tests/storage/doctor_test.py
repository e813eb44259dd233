"""What `histojax doctor` says of a work directory in a bucket."""

from histojax.cli.doctor import checks
from histojax.storage.bucket import Bucket
from tests.helpers.buckets import NAME, Proxy, Server


def test_a_bucket_that_can_be_written(server: Server) -> None:
    found = checks.disk("work directory", server.address("doctor"))
    assert found.level == "ok"
    assert f"{server.scheme}://{NAME}/doctor: can be written and read" in found.text
    assert Bucket(server.address("doctor")).list() == []


def test_a_bucket_that_cannot_be_written(proxy: Proxy) -> None:
    proxy.disturb = lambda method, path: b"<Error><Code>AccessDenied</Code></Error>" if method == "PUT" else None
    found = checks.disk("work directory", proxy.server.address("doctor"))
    assert found.level == "fail"
    assert "these credentials may not do this: grant them read and write access to the bucket" in found.text
