"""A SLURM cluster on this machine: its real daemons, on hosts of a network of their own.

Needs Debian's packages slurm-wlm and munge, and root. The hosts share this machine's disks and processors.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from tests.conftest import ROOT
from tests.helpers import network
from tests.helpers.network import Host, Network

_SETTINGS = """\
ClusterName=tests
SlurmctldHost=host1(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why no cluster can be started here; empty if it can."""
    for program, package in (("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm"), ("munged", "munge")):
        if shutil.which(program) is None:
            return f"there is no program {program}: apt-get install {package}"
    return network.missing()


class Cluster:
    """Nodes host1, host2 … with two processors each, of which host1 also runs the controller; a context manager.

    Args:
      count: number of nodes.
    """

    def __init__(self, count: int = 2):
        self._count = count
        self._stack = contextlib.ExitStack()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        with contextlib.ExitStack() as stack:
            # Not in a folder of pytest: munge refuses one that is closed to other users, or lies in such a folder.
            self._folder = folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
            folder.chmod(0o755)
            self._environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
            self.hosts = stack.enter_context(Network(*["own"] * self._count)).hosts
            self._configure()
            stack.callback(self._stop)
            key = folder / "munge.key"
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
            places = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
            places |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
            self._start("munged", ["munged", "--foreground", *(f"--{name}={path}" for name, path in places.items())])
            self._wait((folder / "munge.socket").exists)
            self._start("slurmctld", self.hosts[0].words("slurmctld", "-D", "-i"))
            for host in self.hosts:
                self.start_node(host)
            self._wait(lambda: self.run("sinfo", "--noheader", "--format=%T %D") == f"idle {self._count}\n")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a command on the first host and return its output.

        Raises:
          RuntimeError: it failed.
        """
        done = subprocess.run(
            self.hosts[0].words(*words),
            cwd=ROOT,
            env=self._environment | (environment or {}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stdout}{done.stderr}{self.logs()}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return the facts that the controller has of a job, by SLURM's names, such as JobState and Restarts."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", number, "--oneliner")))

    def until(self, number: str, reached: Callable[[dict[str, str]], bool], seconds: float = 120) -> dict[str, str]:
        """Wait for something to be true of a job, and return its facts."""
        self._wait(lambda: reached(self.job(number)), seconds)
        return self.job(number)

    def start_node(self, host: Host) -> None:
        """Start a node's daemon."""
        self._start(host.name, host.words("slurmd", "-D", "-N", host.name))

    def lose_node(self, host: Host) -> None:
        """Kill all processes of a node, as a power cut does."""
        found = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True)
        subprocess.run(["kill", "-KILL", *found.stdout.split()])  # some may have ended meanwhile
        self._daemons.pop(host.name).wait()

    def logs(self) -> str:
        """Return what the daemons have written, for messages."""
        found = (path.read_text(errors="replace")[-2000:] for path in sorted(self._folder.glob("*.log")))
        return "\n".join(found)

    def _configure(self) -> None:
        names = [host.name for host in self.hosts]
        nodes = [f"NodeName={host.name} NodeAddr={host.address} CPUs=2 State=UNKNOWN" for host in self.hosts]
        text = _SETTINGS.format(folder=self._folder, nodes="\n".join(nodes), names=",".join(names))
        (self._folder / "slurm.conf").write_text(text)
        # slurmd looks for control groups, which a container may not have, and uses none with these settings.
        (self._folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self._folder / "state").mkdir()
        for name in names:
            (self._folder / f"spool-{name}").mkdir()

    def _start(self, name: str, words: list[str]) -> None:
        with open(self._folder / f"{name}.out.log", "a") as file:
            self._daemons[name] = subprocess.Popen(words, env=self._environment, stdout=file, stderr=file)

    def _wait(self, reached: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not reached within {seconds:.0f} s\n{self.logs()}")
            time.sleep(0.2)

    def _stop(self) -> None:
        for host in self.hosts:
            if host.name in self._daemons:
                self.lose_node(host)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
