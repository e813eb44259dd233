"""The viewer's server, over real sockets: what it answers, and to whom."""

import http.client
import pathlib
import socket
import threading
from collections.abc import Iterator

import pytest

from histojax.core.errors import RunError
from histojax.evaluation.view import static
from histojax.evaluation.view.server import Server
from tests.helpers.served import served


class Pages:
    """A site of three pages; one cannot be read, and one is a bug."""

    def read(self, path: str) -> bytes | None:
        if path == "damaged.jpg":
            raise RunError("a.svs: damaged tile\n<b>")
        if path == "bug.jpg":
            raise ZeroDivisionError
        if path == "large.jpg":
            return bytes(1 << 26)
        return {"index.html": b"<h1>first</h1>", "folder/\u00e4 b.png": b"png"}.get(path)

    def paths(self) -> Iterator[str]:
        yield from ("index.html", "folder/\u00e4 b.png", "damaged.jpg")


@pytest.fixture
def server() -> Iterator[Server]:
    with served(Pages()) as server:
        yield server


def secret(server: Server) -> str:
    return server.url.rsplit("/", 2)[1]


def raw(server: Server, request: str) -> bytes:
    """Send bytes as they are, and return the whole answer."""
    with socket.create_connection(("127.0.0.1", server.server_port), 30) as connection:
        connection.sendall(request.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def get(server: Server, path: str, method: str = "GET", host: str | None = "localhost") -> tuple[int, bytes]:
    """Send a request for a path behind the secret."""
    lines = [f"{method} /{secret(server)}/{path} HTTP/1.1", "Connection: close"]
    answer = raw(server, "\r\n".join(lines + ([f"Host: {host}"] if host is not None else [])) + "\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_pages_are_served_with_their_types_and_strict_headers(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    for path, media_type, content in (
        ("", "text/html; charset=utf-8", b"<h1>first</h1>"),
        ("index.html?x=1", "text/html; charset=utf-8", b"<h1>first</h1>"),
        ("folder/%C3%A4%20b.png", "image/png", b"png"),
    ):
        connection.request("GET", f"/{secret(server)}/{path}")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, content)
        headers = dict(answer.getheaders())
        assert headers["Content-Type"] == media_type
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;")
        assert "unsafe" not in policy
    connection.close()


def test_head_sends_the_length_alone(server: Server) -> None:
    answer = raw(server, f"HEAD /{secret(server)}/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Content-Length: 14\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(server: Server, method: str) -> None:
    assert get(server, "", method)[0] == 405


def test_an_unknown_method_is_refused(server: Server) -> None:
    assert get(server, "", "BREW")[0] == 501


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8000", "127.0.0.1:1"])
def test_this_machine_may_ask(server: Server, host: str) -> None:
    assert get(server, "", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1]",
             "0.0.0.0", "localhost:80@evil.example", "127.0.0.1:123456", None],
)  # fmt: skip
def test_other_hosts_are_refused(server: Server, host: str | None) -> None:
    assert get(server, "", host=host)[0] == 403


def test_two_hosts_are_refused(server: Server) -> None:
    words = f"GET /{secret(server)}/ HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(server, words).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "target", ["/", "/index.html", "/wrong/index.html", "/wrong/", "//", "*", "index.html", "/\xe4/"]
)
def test_a_request_without_the_secret_finds_nothing(server: Server, target: str) -> None:
    answer = raw(server, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"first" not in answer


@pytest.mark.parametrize(
    "path",
    ["../index.html", "%2e%2e/index.html", "folder/../index.html", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd",
     "index.html%00", "%00", "index.html/", "folder", "folder/", "..%5cindex.html", "%ff", "%", "%zz", "index.html%0a",
     "http://evil.example/index.html", "a" * 5000],
)  # fmt: skip
def test_other_paths_are_not_found(server: Server, path: str) -> None:
    assert get(server, path)[0] == 404


def test_a_picture_that_cannot_be_read_is_reported(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    status, body = get(server, "damaged.jpg")
    assert (status, body) == (500, b"a.svs: damaged tile\n<b>\n")  # as plain text
    assert "damaged tile" in caplog.text
    assert get(server, "")[0] == 200


def test_a_bug_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    assert raw(server, f"GET /{secret(server)}/bug.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    assert "please report it" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert get(server, "")[0] == 200


def test_a_connection_that_the_browser_closes_is_no_error(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled, handle = threading.Event(), Server.handle_error
    monkeypatch.setattr(Server, "handle_error", lambda *words: (handle(*words), handled.set()))
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(f"GET /{secret(server)}/large.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        connection.recv(100)
    assert handled.wait(60)
    assert not caplog.records
    assert get(server, "")[0] == 200


def test_it_listens_on_the_loopback_interface_only(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url.startswith("http://127.0.0.1:")
    with served(Pages()) as other:
        assert secret(other) != secret(server)
        assert len(secret(other)) > 20


def test_a_port_in_use_is_reported(server: Server) -> None:
    with pytest.raises(RunError, match=rf"--port={server.server_port} cannot be used"):
        Server(Pages(), server.server_port)


def test_a_folder_has_every_page_and_says_what_is_left_out(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "pages"
    assert static.write(Pages(), output, "1.2") == 17
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert files == {"index.html", "folder/\u00e4 b.png", "view.json"}
    assert (output / "index.html").read_bytes() == b"<h1>first</h1>"
    assert "left out damaged.jpg: a.svs: damaged tile" in caplog.text
    with pytest.raises(RunError, match="already exists; choose another folder"):
        static.write(Pages(), output, "1.2")


def test_a_failure_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    class Broken(Pages):
        def paths(self) -> Iterator[str]:
            yield from ("index.html", "bug.jpg")

    with pytest.raises(ZeroDivisionError):
        static.write(Broken(), tmp_path / "pages", "1.2")
    assert not list(tmp_path.iterdir())
