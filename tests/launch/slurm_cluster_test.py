"""slurm.sbatch on a SLURM cluster of two nodes: its real daemons, on hosts of a network of their own."""

import pathlib
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.helpers import quick_run, slurm
from tests.helpers.processes import Processes
from tests.helpers.programs import assert_same_run, last_logged_step
from tests.helpers.slurm import Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM cluster: {slurm.missing()}"),
]
EPOCHS = 60  # it takes 20 s


def fields(epochs: int) -> tuple[str, ...]:
    return f"--config.train.epochs={epochs}", "--config.checkpoint.every_epochs=5"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return quick_run.images(tmp_path_factory.mktemp("images") / "synthetic")


class Job:
    """A training run on both nodes, one process each."""

    def __init__(
        self, cluster: Cluster, workdir: pathlib.Path, images: pathlib.Path, *options: str, epochs: int = EPOCHS
    ):
        self.workdir, self.log, self._cluster = workdir, workdir.with_suffix(".log"), cluster
        words = ["sbatch", "--parsable", "--nodes=2", *options, f"--output={self.log}", "launch/slurm.sbatch"]
        words += ["--config=tests/helpers/tiny_config.py:mini", f"--workdir={workdir}", f"--config.data.root={images}"]
        words += ["--config.sharding.cpu_devices=1", "--config.optimizer.schedule=constant", *fields(epochs)]
        here = {"HISTOJAX_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        self.number = cluster.run(*words, environment=here).strip()

    def until_trained(self, steps: int) -> None:
        deadline = time.monotonic() + 120
        while last_logged_step(self.workdir) < steps:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def until(self, state: str, seconds: float = 120) -> dict[str, str]:
        try:
            return self._cluster.until(self.number, lambda facts: facts["JobState"] == state, seconds)
        except RuntimeError as error:
            raise RuntimeError(f"{self._cluster.job(self.number)}\n{self.text()}\n{error}") from None

    def start_now(self) -> None:
        """SLURM waits two minutes before it starts a requeued job."""
        self.until("PENDING")
        self._cluster.run("scontrol", "update", f"JobId={self.number}", "StartTime=now")
        self.until("RUNNING")

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def test_a_stopped_job_is_requeued_until_it_ends_as_if_it_had_not_been_stopped(
    cluster: Cluster, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = Job(cluster, tmp_path / "run", images)
    job.until_trained(20)
    cluster.run("scancel", "--signal=TERM", job.number)  # as before preemption
    job.start_now()
    # While the processes start, before they have begun to train.
    while "start 2, 2 processes on host[1-2]" not in job.text():
        time.sleep(0.05)
    time.sleep(1)
    cluster.run("scancel", "--signal=TERM", job.number)
    job.start_now()
    facts = job.until("COMPLETED")
    assert facts["Restarts"] == "2"
    assert facts["ExitCode"] == "0:0"
    assert job.text().count("stopped and saved; requeued") == 2
    assert "resuming at step" in job.text()
    undisturbed = Processes(tmp_path / "undisturbed", images, 2, 1, *fields(EPOCHS))
    undisturbed.finish()
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_scancel_ends_a_job_after_a_save(cluster: Cluster, images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = Job(cluster, tmp_path / "run", images)
    job.until_trained(20)
    cluster.run("scancel", job.number)
    assert job.until("CANCELLED")["Restarts"] == "0"
    assert "stopped by SIGTERM at step" in job.text()
    assert "so it is not requeued" in job.text()


def test_a_job_saves_before_its_time_limit(cluster: Cluster, images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    # SLURM looks at the time limits of all jobs every 30 s: the signal comes in the first half of this minute.
    job = Job(cluster, tmp_path / "run", images, "--time=1", "--signal=TERM@40", epochs=1000)
    facts = cluster.until(job.number, lambda facts: facts["Restarts"] == "1")
    assert facts["TimeLimit"] == "00:01:00"
    assert "stopped and saved; requeued" in job.text()
    cluster.run("scancel", job.number)


def test_a_job_is_requeued_when_a_node_is_lost(cluster: Cluster, images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = Job(cluster, tmp_path / "run", images)
    job.until_trained(40)
    lost = cluster.hosts[1]
    cluster.lose_node(lost)
    cluster.until(job.number, lambda facts: facts["Restarts"] == "1", 150)
    cluster.start_node(lost)
    job.start_now()
    job.until("COMPLETED")
    assert "resuming at step" in job.text()
