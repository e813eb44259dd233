"""A site as a folder that opens in a browser without a server and without network."""

import logging
import os
import pathlib

from histojax.core.errors import RunError
from histojax.core.files import atomic_folder, write_json
from histojax.evaluation.view.site import Site

_log = logging.getLogger(__name__)
RECORD = "view.json"  # marks the folder, so that no command takes its tiles for images


def write(site: Site, output: pathlib.Path, version: str) -> int:
    """Write every path of a site; the folder appears when it is complete.

    What cannot be read, such as a damaged part of a slide, is reported and left out.

    Args:
      site: the site.
      output: folder to write, which must not exist.
      version: of histojax, for its record.

    Returns:
      The number of bytes written.

    Raises:
      RunError: the folder exists.
    """
    if os.path.lexists(output):
        raise RunError(f"--static={output}: already exists; choose another folder or delete it")
    size = left_out = 0
    with atomic_folder(output) as temporary:
        for path in site.paths():
            try:
                content = site.read(path)
            except RunError as error:
                _log.warning("left out %s: %s", path, error)
                left_out += 1
                continue
            if content is None:
                continue
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            size += len(content)
        write_json(temporary / RECORD, {"histojax": version, "bytes": size, "left_out": left_out})
    return size
