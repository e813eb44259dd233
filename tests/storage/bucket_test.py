"""Objects in buckets: what is written is read, faults pass or are named, large objects are whole."""

import pathlib

import pytest

from histojax.storage import bucket, errors
from histojax.storage.bucket import Bucket
from histojax.storage.errors import BucketError, NoAnswerError
from tests.helpers.buckets import ERROR, NAME, RESET, TRUNCATE, Proxy, Server

BOTH = pytest.mark.parametrize("proxy", ["s3", "gs"], indirect=True)


def test_what_is_written_can_be_read_listed_and_deleted(server: Server) -> None:
    runs = Bucket(server.address("objects/runs"))
    for key, content in {"a/b.txt": b"hello", "a/ü #1?.csv": b"x", "empty": b"", "z": b"1"}.items():
        runs.write(key, content)
    assert runs.list() == sorted(["a/b.txt", "a/ü #1?.csv", "empty", "z"])
    assert runs.list("a/") == ["a/b.txt", "a/ü #1?.csv"]
    assert [getattr(runs.read(key), "content", None) for key in ("a/b.txt", "empty", "none")] == [b"hello", b"", None]
    assert Bucket(server.address("objects")).list("runs/z") == ["runs/z"]
    runs.delete(["z", "never there"])
    assert "z" not in runs.list()


def test_a_version_changes_with_each_write_and_only_then(server: Server) -> None:
    runs = Bucket(server.address("versions"))
    first = runs.write("state", b"one")
    found = runs.read("state")
    assert found is not None
    assert found.version == first == runs.version("state")
    assert runs.read("state", unless=first) is None
    second = runs.write("state", b"two")
    changed = runs.read("state", unless=first)
    assert changed is not None
    assert changed == bucket.Found(b"two", second)
    assert runs.version("other") is None


def test_of_two_that_write_on_a_condition_one_succeeds(server: Server) -> None:
    runs = Bucket(server.address("conditions"))
    first = runs.write_if("mark", b"mine", None)
    assert first is not None
    assert runs.write_if("mark", b"yours", None) is None
    second = runs.write_if("mark", b"mine again", first)
    assert second is not None
    assert runs.write_if("mark", b"too late", first) is None
    assert runs.read("mark") == bucket.Found(b"mine again", second)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 3000, 3500])
def test_a_large_object_is_read_in_parts(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(bucket, "_PART", 1000)
    slides, content = Bucket(server.address(f"large/{size}")), bytes(i % 251 for i in range(size))
    version = slides.write("slide.svs", content)
    assert slides.download("slide.svs", tmp_path / "new" / "slide.svs") == version
    assert (tmp_path / "new" / "slide.svs").read_bytes() == content
    assert slides.download("other.svs", tmp_path / "other.svs") is None
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "slide.svs"]


def test_an_object_that_changes_while_it_is_read_is_read_again(
    proxy: Proxy, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_PART", 1000)
    slides = Bucket(proxy.server.address("changing"))
    slides.write("a.svs", bytes(2500))
    new = bytes([7]) * 2500
    reads = 0

    def disturb(method: str, path: str) -> None:
        nonlocal reads
        if method == "GET" and path.endswith("a.svs"):
            reads += 1
            if reads == 2:  # after the first part
                slides.write("a.svs", new)

    proxy.disturb = disturb
    slides.download("a.svs", tmp_path / "a.svs")
    assert (tmp_path / "a.svs").read_bytes() == new

    def always(method: str, path: str) -> None:
        if method == "GET" and path.endswith("a.svs"):
            slides.write("a.svs", bytes([len(proxy.requests) % 256]) * 2500)

    proxy.disturb = always
    with pytest.raises(BucketError, match=r"s3://pathology/changing/a.svs: changes while it is read; rerun once"):
        slides.download("a.svs", tmp_path / "b.svs")
    assert not (tmp_path / "b.svs").exists()


@BOTH
@pytest.mark.parametrize("fault", [ERROR, RESET, TRUNCATE])
def test_a_fault_that_passes_is_not_noticed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    monkeypatch.setattr(bucket, "_WAITS", (0.01, 0.01))
    runs, content = Bucket(proxy.server.address(f"faults/{fault[:4]}")), bytes(range(256)) * 40
    seen: set[str] = set()

    def first_of_each(method: str, path: str) -> str | None:
        kind = f"{method} {'list' if '/o?' in path or 'list-type' in path else 'object'}"
        if kind in seen:
            return None
        seen.add(kind)
        return fault

    proxy.disturb = first_of_each
    runs.write("a", content)
    found = runs.read("a")
    assert found is not None
    assert found.content == content
    assert runs.list() == ["a"]
    assert len(seen) >= 3, "not each kind of request was disturbed"


@BOTH
def test_a_bucket_that_does_not_answer_is_named(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_WAITS", (0.01,))
    monkeypatch.setattr(bucket, "_RETRIES", {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"})
    bucket._open.cache_clear()
    proxy.disturb = lambda method, path: ERROR
    runs = Bucket(proxy.server.address("silent"))
    with pytest.raises(NoAnswerError, match=rf"{proxy.server.scheme}://{NAME}/silent/a: no answer from the server"):
        runs.write("a", b"1")
    with pytest.raises(NoAnswerError, match="no answer from the server"):
        runs.list()
    proxy.disturb = lambda method, path: None
    runs.write("a", b"1")


def test_what_the_client_gives_up_is_tried_again(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_WAITS", (0.01,))
    monkeypatch.setattr(bucket, "_RETRIES", {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"})
    bucket._open.cache_clear()
    proxy.disturb = lambda method, path: ERROR if len(proxy.requests) <= 2 else None
    Bucket(proxy.server.address("given-up")).write("a", b"1")
    assert len(proxy.requests) > 2


def test_a_slow_answer_is_waited_for(proxy: Proxy) -> None:
    runs = Bucket(proxy.server.address("slow"))
    proxy.disturb = lambda method, path: 0.5
    runs.write("a", b"1")
    assert runs.list() == ["a"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "these credentials may not do this: grant them read and write access"),
        ("InvalidAccessKeyId", "the server does not know the access key: correct AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "the secret key does not fit the access key"),
        ("ExpiredToken", "the credentials have expired: log in again"),
        ("RequestTimeTooSkewed", "this machine's clock differs too much from the server's: set it"),
        ("AuthorizationHeaderMalformed", "the bucket is in another region: set AWS_REGION"),
    ],
)
def test_a_refusal_of_s3_is_explained(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    monkeypatch.setattr(bucket, "_RETRIES", {"max_retries": 1, "initial_delay": "10ms", "max_delay": "20ms"})
    body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>no</Message></Error>'
    proxy.disturb = lambda method, path: body.encode()
    with pytest.raises(BucketError, match=f"s3://{NAME}/refused/a: {words}") as refused:
        Bucket(proxy.server.address("refused")).write("a", b"1")
    assert not isinstance(refused.value, NoAnswerError), "it must not be repeated for minutes"


def test_a_refusal_of_google_is_explained(server: Server) -> None:
    if server.scheme == "gs":
        with pytest.raises(
            BucketError, match="gs://nowhere/a: there is no such bucket: create it, or correct its name"
        ):
            Bucket("gs://nowhere").write("a", b"1")
        said = errors.in_words("gs://b/a", "UNAUTHENTICATED: Invalid Credentials [http_response_code='401']")
        assert "gcloud auth application-default login" in str(said)
    else:
        with pytest.raises(
            BucketError, match="s3://nowhere/a: there is no such bucket: create it, or correct its name"
        ):
            Bucket("s3://nowhere").write("a", b"1")


@pytest.mark.parametrize(
    "address", ["s3://", "gs:///a", "s3://b", "s3://bucket//a", "s3://bucket/../a", "s3:/bucket/a"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BucketError, match="not an address in a bucket: write gs://BUCKET/PATH or s3://BUCKET/PATH"):
        Bucket(address)


def test_a_file_that_no_object_can_hold_is_refused(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "LARGEST", 10)
    (tmp_path / "map.tif").write_bytes(bytes(11))
    with pytest.raises(BucketError, match=r"map.tif: has 0.0 GiB, and an object can have 5: name a folder of a disk"):
        Bucket(server.address("largest")).upload("map.tif", tmp_path / "map.tif")
