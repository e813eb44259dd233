"""Hosts on a network of their own: network namespaces with addresses and host names, joined by a switch.

Everything is real but the machine: the kernel's TCP/IP, its routes and its firewall. Disks, clock and processors are
those of this machine. Building it needs root and the programs `ip` (Debian's package iproute2) and `unshare`.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from tests.helpers import poor_cable

# How a host's own name resolves: to 127.0.1.1 (Debian, Ubuntu, cloud images), to its own address, or not at all.
RESOLUTIONS = ("loopback", "own", "none")
_CONFIGURATION = pathlib.Path("/etc/netns")  # `ip netns exec` mounts the files of a namespace's folder over /etc
_numbers = itertools.count()


def missing() -> str:
    """Return why no network can be built here; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            return f"there is no program {program}: apt-get install {package}"
    done = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return f"network namespaces are refused here: {done.stderr.strip()}" if done.returncode else ""


@dataclasses.dataclass(frozen=True)
class Host:
    """One host of a network.

    Attributes:
      namespace: its network namespace.
      name: its host name.
      address: its IPv4 address.
      address6: its IPv6 address.
      port: its port of the switch, an interface in the switch's namespace.
    """

    namespace: str
    name: str
    address: str
    address6: str
    port: str

    def words(self, *command: str) -> list[str]:
        """Return the words that run a command on this host. The process of the first word becomes the command's."""
        set_name = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *set_name, *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this host.

        Raises:
          RuntimeError: it failed.
        """
        return _run(*self.words(*command))


class Network:
    """Hosts `host1`, `host2` … with the addresses 10.77.0.1, 10.77.0.2 … and fd77::1, fd77::2 …; a context manager.

    Attributes:
      hosts: the hosts.
    """

    def __init__(self, *resolutions: str):
        """Build it.

        Args:
          *resolutions: one of `RESOLUTIONS` per host. Other hosts' names resolve to their addresses, except on a host
            with `none`.
        """
        prefix = f"hx{os.getpid()}-{next(_numbers)}"
        self._switch = f"{prefix}s"
        self._cable: subprocess.Popen[bytes] | None = None
        self.hosts = [
            Host(f"{prefix}h{i}", f"host{i}", f"10.77.0.{i}", f"fd77::{i}", f"port{i}")
            for i in range(1, len(resolutions) + 1)
        ]
        try:
            self._build(resolutions)
        except BaseException:
            self.remove()
            raise

    def _build(self, resolutions: Sequence[str]) -> None:
        _run("ip", "netns", "add", self._switch)
        self._on_switch("ip", "link", "add", "bridge", "type", "bridge")
        self._on_switch("ip", "link", "set", "bridge", "up")
        for host, resolution in zip(self.hosts, resolutions, strict=True):
            self._write_names(host, resolution)
            _run("ip", "netns", "add", host.namespace)
            ends = ["eth0", "netns", host.namespace, "type", "veth", "peer", "name", host.port, "netns", self._switch]
            _run("ip", "link", "add", *ends)
            self._on_switch("ip", "link", "set", host.port, "master", "bridge", "up")
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "address", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
            host.run("ip", "link", "set", "eth0", "up")

    def _write_names(self, host: Host, resolution: str) -> None:
        assert resolution in RESOLUTIONS, resolution
        lines = ["127.0.0.1 localhost"]
        if resolution != "none":
            own = {"loopback": "127.0.1.1", "own": host.address}[resolution]
            lines += [f"{own if other is host else other.address} {other.name}" for other in self.hosts]
        folder = _CONFIGURATION / host.namespace
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "resolv.conf").write_text("")  # no name server: names that the file lacks do not resolve

    def _on_switch(self, *command: str) -> None:
        _run("ip", "netns", "exec", self._switch, *command)

    def plug(self, host: Host, *, into: bool) -> None:
        """Pull the cable of a host out of the switch, or plug it in again."""
        self._on_switch("ip", "link", "set", host.port, "up" if into else "down")

    def disturb(self, delay_ms: float, loss: float) -> None:
        """Replace the switch by one that delays all frames and loses a fraction of them; see `poor_cable`."""
        for host in self.hosts:
            self._on_switch("ip", "link", "set", host.port, "nomaster")
        words = [sys.executable, poor_cable.__file__, str(delay_ms), str(loss), *(host.port for host in self.hosts)]
        command = ["ip", "netns", "exec", self._switch, *words]
        self._cable = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._cable.stdout is not None
        if self._cable.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the switch with delay {delay_ms} ms and loss {loss} did not start")

    def remove(self) -> None:
        """Remove the network. Its processes must have ended."""
        if self._cable is not None:
            self._cable.kill()
            self._cable.communicate()
        for namespace in (*(host.namespace for host in self.hosts), self._switch):
            # What was not built yet cannot be removed, and its error does not matter.
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
            shutil.rmtree(_CONFIGURATION / namespace, ignore_errors=True)

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done
