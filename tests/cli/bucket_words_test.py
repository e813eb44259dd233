"""Which words of a command line are addresses that are read, and which are written."""

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from histojax.cli.bucket_words import with_local_paths
from histojax.storage import places


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read and written, in this order; the local path of `s3://lab/x` is /local/x."""
    log: list[str] = []

    def local(address: str) -> pathlib.Path:
        log.append(f"read {address}")
        return pathlib.Path("/local") / address.rpartition("/")[2]

    @contextlib.contextmanager
    def written(address: str) -> Iterator[pathlib.Path]:
        yield pathlib.Path("/local") / address.rpartition("/")[2]
        log.append(f"written {address}")

    monkeypatch.setattr(places, "local", local)
    monkeypatch.setattr(places, "written", written)
    return log


@pytest.mark.parametrize(
    ("words", "local", "log"),
    [
        ("predict s3://lab/a img", "predict /local/a img", ["read s3://lab/a"]),
        ("predict s3://lab/a,b,gs://lab/c i", "predict /local/a,b,/local/c i", ["read s3://lab/a", "read gs://lab/c"]),
        ("report r --output=gs://lab/o", "report r --output=/local/o", ["written gs://lab/o"]),
        ("report r --output gs://lab/o --images s3://lab/i", "report r --output /local/o --images /local/i",
         ["read s3://lab/i", "written gs://lab/o"]),
        ("eval --checkpoint s3://lab/r --workdir s3://lab/w", "eval --checkpoint /local/r --workdir s3://lab/w",
         ["read s3://lab/r"]),
        ("train --config x --workdir gs://lab/w --config.data.root=gs://lab/d",
         "train --config x --workdir gs://lab/w --config.data.root=gs://lab/d", []),
        ("compare --config x --workdir gs://lab/w --config.data.root gs://lab/d",
         "compare --config x --workdir /local/w --config.data.root gs://lab/d", ["written gs://lab/w"]),
        ("doctor --workdir gs://lab/w", "doctor --workdir gs://lab/w", []),
        ("probe f --json s3://lab/j.json", "probe f --json /local/j.json", ["written s3://lab/j.json"]),
        ("models", "models", []),
    ],
)  # fmt: skip
def test_addresses_become_paths(done: list[str], words: str, local: str, log: list[str]) -> None:
    with with_local_paths(words.split()) as found:
        assert found == local.split()
    assert done == log
