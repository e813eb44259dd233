"""Google Cloud Storage on loopback: gcp-storage-emulator, with what it lacks of the protocol.

It has no preconditions (`ifGenerationMatch`) and no lists of a range, does not name the generation of what it sends,
crashes on empty objects, answers a range behind an object's end with an empty body, and serves one connection at a
time.

Usage: python -m tests.helpers.gcs_server PORT BUCKET
"""

import functools
import http.server
import json
import sys
import threading
import urllib.parse

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

_LOCK = threading.RLock()  # the emulator's storage is not made for several threads
_read_data = server._read_data


class Handler(server.RequestHandler):
    """Answers one request after the other, however many connections there are."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Read an object, its description or a list."""
        self._answer(super().do_GET)

    def do_POST(self) -> None:
        """Write an object."""
        self._answer(super().do_POST)

    def do_DELETE(self) -> None:
        """Delete an object."""
        self._answer(super().do_DELETE)

    def end_headers(self) -> None:
        """Name the generation of an object that is sent."""
        if self._generation:
            self.send_header("x-goog-generation", self._generation)
        super().end_headers()

    def _answer(self, action) -> None:
        with _LOCK:
            url = urllib.parse.urlparse(self.path)
            query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
            obj = self._object(url.path, query)
            found = str(obj["generation"]) if obj else "0"
            self._generation = found if obj and query.get("alt") == "media" else ""
            if query.get("ifGenerationMatch", found) != found:
                return self._refuse(412)
            if obj and query.get("ifGenerationNotMatch") == found:
                return self._refuse(304)
            if url.path.endswith("/o") and self.command == "GET":
                return self._list(url.path.split("/")[-2], query)
            start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
            if self._generation and int(start or 0) >= int(obj["size"]) and "Range" in self.headers:
                return self._refuse(416)
            action()

    def _object(self, path: str, query: dict[str, str]):
        """Return the description of the object that a request is about, if it exists."""
        bucket, _, name = path.partition("/b/")[2].partition("/o")
        name = query.get("name", urllib.parse.unquote(name.removeprefix("/")))
        try:
            return self.storage.get_file_obj(bucket, name) if name else None
        except NotFound:
            return None

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        """Send the objects of a bucket from `startOffset` to before `endOffset`."""
        try:
            found, _ = self.storage.get_file_list(bucket, query.get("prefix"))
        except NotFound:
            return self._refuse(404)
        first, behind = query.get("startOffset", ""), query.get("endOffset")
        items = [item for item in found if item["name"] >= first and (behind is None or item["name"] < behind)]
        content = json.dumps({"kind": "storage#objects", "items": items}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main(port: int, bucket: str) -> None:
    """Serve an empty bucket until the process is ended."""
    server._read_data = lambda handler, query: _read_data(handler, query) or b""
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(bucket, storage)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, storage)).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
