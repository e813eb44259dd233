"""Buckets on loopback: real servers for S3 and Google Cloud Storage, and a proxy that disturbs what passes through."""

import contextlib
import http.client
import http.server
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from histojax.storage import bucket
from tests.conftest import ROOT

NAME = "pathology"
# What a proxy does with a request: passes it on, or one of these.
ERROR, RESET, TRUNCATE = "answers with 503", "closes the connection", "sends half of the body"


@dataclass
class Server:
    """A server with one bucket.

    Attributes:
      scheme: `s3` or `gs`.
      port: on loopback.
    """

    scheme: str
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a program to the server."""
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.port}"}
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
        }

    def address(self, path: str) -> str:
        """Return the address of something in the bucket."""
        return f"{self.scheme}://{NAME}/{path}"

    @contextlib.contextmanager
    def used(self, monkeypatch: pytest.MonkeyPatch) -> Iterator["Server"]:
        """Lead this process to the server."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        bucket._open.cache_clear()
        yield self
        bucket._open.cache_clear()


def free_port() -> int:
    """Return a port that no program uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(scheme: str) -> Iterator[Server]:
    """Run a server in a process of its own: moto for S3, gcp-storage-emulator for Google."""
    port = free_port()
    words = [sys.executable, "-m"]
    if scheme == "s3":
        words += ["moto.server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        words += ["tests.helpers.gcs_server", str(port), NAME]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"the server for {scheme} ended at once"
                assert time.monotonic() < deadline, f"the server for {scheme} does not listen"
                time.sleep(0.05)
        if scheme == "s3":
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{NAME}", method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
        yield Server(scheme, port)
    finally:
        process.kill()
        process.wait()


@dataclass
class Proxy:
    """Passes requests on to a server, but for those that it disturbs.

    Attributes:
      server: the server that clients see.
      disturb: from method and path of a request to what is done with it; None passes it on. A number is a delay in
        seconds, bytes are the body of a refusal with status 403.
      bytes_per_second: how fast bodies pass, both ways together; 0: at once.
      requests: methods and paths so far.
      sent: bytes of all answers so far.
    """

    server: Server
    disturb: Callable[[str, str], str | float | bytes | None] = lambda method, path: None
    bytes_per_second: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0


@contextlib.contextmanager
def through_proxy(server: Server) -> Iterator[Proxy]:
    """Run a proxy in front of a server."""
    proxy = Proxy(Server(server.scheme, 0))
    slow = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = urllib.parse.unquote(self.path)
            proxy.requests.append((self.command, path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._take_time(body)
            what = proxy.disturb(self.command, path)
            if isinstance(what, float):
                time.sleep(what)
            if what == RESET:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if what == ERROR or isinstance(what, bytes):
                return self._send(503 if what == ERROR else 403, {}, what if isinstance(what, bytes) else b"busy")
            upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            proxy.sent += len(content)
            self._take_time(content)
            headers = {key: value for key, value in answer.getheaders() if key.lower() not in _OF_A_CONNECTION}
            self._send(answer.status, headers, content, truncate=what == TRUNCATE)

        def _send(self, status: int, headers: dict[str, str], content: bytes, truncate: bool = False) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: len(content) // 2] if truncate else content)
            if truncate:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def _take_time(self, content: bytes) -> None:
            if proxy.bytes_per_second:
                with slow:  # connections share the line
                    time.sleep(len(content) / proxy.bytes_per_second)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has gone is no error of the tests."""

    listening = Quiet(("127.0.0.1", 0), Handler)
    proxy.server.port = listening.server_address[1]
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listening.shutdown()
        listening.server_close()


_OF_A_CONNECTION = ("content-length", "transfer-encoding", "connection", "date", "server")
