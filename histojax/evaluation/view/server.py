"""A web server for the user of this machine: it shows a site, and neither writes nor opens a path of the disk.

A path of a request is only looked up in the site. Its first part is a secret, so that other users of the machine, who
can reach the port as well, see nothing. Requests that name another host are refused: a page of another site could
otherwise reach the server by a name that leads to this machine (DNS rebinding).
"""

import errno
import http.server
import logging
import pathlib
import re
import secrets
import socketserver
import sys
import urllib.parse
from http import HTTPStatus

from histojax.core.errors import RunError
from histojax.evaluation.view.site import INDEX, MEDIA_TYPES, POLICY, Site

_log = logging.getLogger(__name__)
_ADDRESS = "127.0.0.1"
_HOST = re.compile(r"(localhost|127\.0\.0\.1)(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Cache-Control": "no-store",  # pictures of patients do not stay in the browser's cache
    "Content-Security-Policy": POLICY.replace(" file:", "") + "; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(http.server.ThreadingHTTPServer):
    """Serves a site on the loopback interface; close it after use.

    Attributes:
      site: what it shows.
      url: address of the first page, with the secret.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int = 0) -> None:
        """Bind a port; 0 chooses a free one.

        Raises:
          RunError: the port is in use, or this user may not bind it.
        """
        self.site, self._secret = site, secrets.token_urlsafe(16)
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise RunError(
                f"--port={port} cannot be used ({error.strerror}): choose another, or leave out --port for a free one"
            ) from error
        self.url = f"http://{_ADDRESS}:{self.server_port}/{self._secret}/"

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _ADDRESS, self.socket.getsockname()[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what went wrong, unless the browser has closed the connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            _log.exception("unexpected error in the program, please report it")

    def path(self, target: str) -> str | None:
        """Return the path of the site that a request is for; None where the secret is wrong.

        Args:
          target: as in the request line, percent-encoded.
        """
        _, secret, rest = [*target.partition("?")[0].split("/", 2), "", ""][:3]
        if not secrets.compare_digest(secret.encode(errors="replace"), self._secret.encode()):
            return None
        return urllib.parse.unquote(rest, errors="surrogateescape") or INDEX


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "histojax", ""
    timeout = 60  # seconds that a connection may be idle

    def do_GET(self) -> None:
        """Answer with the content of a path."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return self._text(HTTPStatus.FORBIDDEN, "Open the address that histojax view has printed.")
        path = self.server.path(self.path)
        try:
            content = None if path is None else self.server.site.read(path)
        except (RunError, OSError) as error:
            _log.warning("%s", error)
            return self._text(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        if path is None or content is None:
            return self._text(HTTPStatus.NOT_FOUND, "Not found. Open the address that histojax view has printed.")
        return self._send(HTTPStatus.OK, MEDIA_TYPES[pathlib.PurePosixPath(path).suffix], content)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # the body of the request stays unread
        self._text(
            HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are answered.", Allow="GET, HEAD", Connection="close"
        )

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _text(self, status: HTTPStatus, message: str, **headers: str) -> None:
        self._send(status, MEDIA_TYPES[".txt"], message.encode("utf-8", "replace") + b"\n", **headers)

    def _send(self, status: HTTPStatus, media_type: str, content: bytes, **headers: str) -> None:
        self.send_response(status)
        lengths = {"Content-Type": media_type, "Content-Length": str(len(content))}
        for name, value in (_HEADERS | lengths | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the terminal shows only what a user has to know."""
