"""A site on a running server, which ends with the test whatever happens."""

import contextlib
import threading
from collections.abc import Iterator

from histojax.evaluation.view.server import Server
from histojax.evaluation.view.site import Site


@contextlib.contextmanager
def served(site: Site, port: int = 0) -> Iterator[Server]:
    """Serve a site in a thread."""
    with Server(site, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
