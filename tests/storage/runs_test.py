"""Runs in buckets of real servers: killed, resumed on another machine and evaluated, they end like a run on disk."""

import json
import pathlib
import signal
import tarfile

import numpy as np
import pytest

from histojax.storage.bucket import Bucket
from histojax.storage.mirror import Mirror
from tests.helpers import buckets
from tests.helpers.command import histojax
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.devices]
FIELDS = ("--config.train.epochs=8",)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("on-disk") / "run"
    Processes(workdir, images, 1, 2, *FIELDS).finish()
    return workdir


class Cloud:
    """Machines without a common disk that work on one run in a bucket."""

    def __init__(self, folder: pathlib.Path, images: pathlib.Path, server: buckets.Server, name: str):
        self.folder, self.images, self.server = folder, images, server
        self.place = server.address(name)
        self._machines = 0

    def start(self, count: int, devices: int, *more: str) -> Processes:
        """Start the run on machines that have not seen it before, one for each process."""
        machines = []
        for _ in range(count):
            self._machines += 1
            machines.append({"HISTOJAX_DATA": str(self.folder / f"machine-{self._machines}")})
        return Processes(
            self.folder / "run", self.images, count, devices, *FIELDS, *more,
            environment=self.server.environment, place=self.place, machines=machines,
        )  # fmt: skip

    def objects(self) -> list[str]:
        """Return the keys of the run's objects."""
        return Bucket(self.place).list()

    def fetched(self) -> pathlib.Path:
        """Return a folder with everything that is in the bucket now."""
        mirror = Mirror(self.place, self.folder / "fetched" / "run", self.folder / "fetched" / "index.json")
        mirror.pull()
        return mirror.folder


def seals(keys: list[str], series: str = "last") -> list[str]:
    return [key for key in keys if key.startswith(f"checkpoints/{series}/") and key.endswith("sha256.json")]


def newest(cloud: Cloud) -> int:
    """Return the step of the newest complete checkpoint in the bucket, 0 if there is none."""
    return max((int(key.split("/")[2]) for key in seals(cloud.objects())), default=0)


def test_killed_while_it_writes_and_resumed_elsewhere_it_ends_like_one_on_disk(
    proxy: buckets.Proxy, images: pathlib.Path, on_disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cloud = Cloud(tmp_path, images, proxy.server, "kills/run")

    def writing_checkpoint() -> bool:
        return any(method == "PUT" and "/checkpoints/last/" in path for method, path in proxy.requests[seen:])

    for _ in range(2):
        seen = len(proxy.requests)
        run = cloud.start(1, 2)
        run.until(writing_checkpoint)
        run.kill()
    run = cloud.start(1, 2)
    run.until(lambda: newest(cloud) > 0)
    run.started[0].send_signal(signal.SIGTERM)
    assert run.codes() == [75], run.text()
    stopped = Bucket(cloud.place).list()
    assert ".owner" not in stopped
    assert "results.json" not in stopped
    # It is in the bucket up to the step that it stopped at.
    said = run.text().partition("stopped by SIGTERM at step ")[2]
    assert f"checkpoints/last/{said.partition(',')[0]}/sha256.json" in stopped, run.text()
    run = cloud.start(1, 2)
    run.finish()
    assert "resuming at step" in run.text()
    assert_same_run(cloud.fetched(), on_disk)
    kept = {"config.json", "metrics.jsonl", "predictions.csv", "predictions.parquet", "results.json", "split.csv"}
    assert kept <= set(cloud.objects())
    for name in ("predictions.csv", "split.csv"):
        assert (cloud.fetched() / name).read_bytes() == (on_disk / name).read_bytes()
    left = [key for key in cloud.objects() if ".owner" in key or "tmp" in key]
    assert not left
    assert len(seals(cloud.objects(), "best")) == 1


@pytest.mark.parametrize("server", ["gs"], indirect=True)
def test_on_other_numbers_of_machines_it_ends_the_same(
    server: buckets.Server, images: pathlib.Path, on_disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cloud = Cloud(tmp_path, images, server, "elastic/run")
    for count, devices in ((2, 1), (1, 2)):
        before = newest(cloud)
        run = cloud.start(count, devices, f"--config.sharding.fsdp={count}")  # each machine has half of the state
        run.until(lambda before=before: newest(cloud) > before)
        run.started[0].send_signal(signal.SIGTERM)
        assert run.codes() == [75] * count, run.text()
    run = cloud.start(2, 1)
    run.finish()
    for series in ("last", "best"):
        theirs, ours = arrays(on_disk, series), arrays(cloud.fetched(), series)
        assert theirs.keys() == ours.keys()
        for path, value in theirs.items():
            np.testing.assert_allclose(ours[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    assert "results.json" in cloud.objects()
    assert ".owner" not in cloud.objects()


def test_a_run_outlives_its_bucket_and_says_where_its_work_is(
    proxy: buckets.Proxy, images: pathlib.Path, on_disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cloud = Cloud(tmp_path, images, proxy.server, "vanished/run")
    gone = False
    body = b"<Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>"
    proxy.disturb = lambda method, path: body if gone else None
    run = cloud.start(1, 2)
    run.until(lambda: newest(cloud) > 0)
    gone = True
    assert run.codes() == [1], run.text()
    said = " ".join(run.text().split())
    assert "there is no such bucket: create it, or correct its name" in said
    folder = said.partition("Everything is in ")[2].partition(" on this machine")[0]
    assert "rerun the same command here, which resumes from there" in said
    assert (pathlib.Path(folder) / "checkpoints/last").is_dir()
    gone = False
    again = Processes(
        tmp_path / "run", images, 1, 2, *FIELDS, environment=proxy.server.environment, place=cloud.place,
        machines=[{"HISTOJAX_DATA": str(tmp_path / "machine-1")}],
    )  # fmt: skip
    again.finish()
    assert_same_run(cloud.fetched(), on_disk)


def test_other_commands_read_and_write_buckets(
    servers: dict[str, buckets.Server],
    images: pathlib.Path,
    on_disk: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HISTOJAX_DATA", str(tmp_path / "data"))
    with servers["gs"].used(monkeypatch) as google:
        Mirror(google.address("verbs/run"), on_disk, tmp_path / "index.json").push()
        pictures = sorted(images.rglob("*.png"))[:6]
        for path in pictures:
            Bucket(google.address("verbs/images")).upload(path.name, path)
    with servers["s3"].used(monkeypatch) as s3:
        environment = google.environment | s3.environment
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        run, images_there = google.address("verbs/run"), google.address("verbs/images")
        outputs = Bucket(s3.address("out"))
        predicted = histojax("predict", run, images_there, "--output", s3.address("out/table.csv"))
        assert predicted.returncode == 0, predicted.stderr
        local = histojax("predict", on_disk, *pictures, "--output", tmp_path / "table.csv")
        assert local.returncode == 0, local.stderr
        found = outputs.read("table.csv")
        assert found is not None
        rows = [line.split(",", 1)[1] for line in found.content.decode().splitlines()[1:]]
        assert rows == [line.split(",", 1)[1] for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]

        assert histojax("report", f"{run}", f"--output={s3.address('out/report')}").returncode == 0
        assert {"report/report.html", "report/report.json"} <= set(outputs.list())
        evaluated = histojax(
            "eval", "--checkpoint", run, "--workdir", s3.address("out/eval"), "--data_root", str(images)
        )
        assert evaluated.returncode == 0, evaluated.stderr
        words = ("--checkpoint", on_disk, "--workdir", tmp_path / "eval", "--data_root", str(images))
        assert histojax("eval", *words).returncode == 0
        results = outputs.read("eval/results.json")
        assert results is not None
        assert (
            json.loads(results.content)["splits"] == json.loads((tmp_path / "eval/results.json").read_text())["splits"]
        )

        missing = histojax("predict", google.address("nothing"), images_there, "--output", tmp_path / "x.csv")
        assert missing.returncode == 1
        assert "gs://pathology/nothing: no such object or folder in the bucket" in missing.stderr


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_images_and_prepared_data_may_lie_in_a_bucket(
    server: buckets.Server, images: pathlib.Path, on_disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(images, arcname=".")
    Bucket(server.address("data")).upload("images.tar.gz", archive)
    root, prepared = server.address("data/images.tar.gz"), server.address("data/prepared")
    flags = (f"--config.data.root={root}", f"--config.data.prepared_dir={prepared}", *FIELDS)
    environment = server.environment | {"HISTOJAX_DATA": str(tmp_path / "machine")}
    run = Processes(tmp_path / "run", images, 1, 2, *flags, environment=environment)
    run.finish()
    theirs, ours = arrays(on_disk, "last"), arrays(tmp_path / "run", "last")
    assert {path: value.tobytes() for path, value in theirs.items()} == {
        path: value.tobytes() for path, value in ours.items()
    }
    stored = Bucket(prepared).list()
    assert any(".array_record" in key for key in stored), stored
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["root"] == root
    again = Processes(tmp_path / "again", images, 1, 2, *flags, environment=environment)
    again.finish()
    assert "preparing breakhis" in run.text()
    assert "preparing breakhis" not in again.text()
