"""Servers for buckets, started once by each worker of the tests."""

from collections.abc import Iterator

import pytest

from tests.helpers import buckets


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, buckets.Server]]:
    with buckets.running("s3") as s3, buckets.running("gs") as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture(params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, servers: dict[str, buckets.Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[buckets.Server]:
    with servers[request.param].used(monkeypatch) as server:
        yield server


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest, servers: dict[str, buckets.Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[buckets.Proxy]:
    """A proxy in front of S3, or of the scheme that the test names as the fixture's parameter."""
    with buckets.through_proxy(servers[getattr(request, "param", "s3")]) as proxy, proxy.server.used(monkeypatch):
        yield proxy
