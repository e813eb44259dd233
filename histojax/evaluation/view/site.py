"""What a viewer shows: pages and pictures by path. The server asks for one at a time, a static folder for all."""

import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

from histojax.evaluation.report.html_templates import environment

INDEX = "index.html"
_FOLDER = pathlib.Path(__file__).parent
# Scripts and styles are files of the site, never parts of a page, so that a name in a page cannot become one. Pages in
# a folder have the scheme `file:`, which browsers do not count as 'self'.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' file:",
        "style-src 'self' file:",
        "img-src 'self' file: data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".dzi": "application/xml",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}


class Site(Protocol):
    """Pages and pictures by path, such as `slides/a/index.html`; safe to use from several threads.

    Links between pages are relative, and each path ends in a key of `MEDIA_TYPES`.
    """

    def read(self, path: str) -> bytes | None:
        """Return the content of a path; None if the site has no such path.

        Raises:
          RunError: the content cannot be made; the message says why.
        """

    def paths(self) -> Iterator[str]:
        """Yield every path, the first page first."""


def assets(*files: pathlib.Path) -> dict[str, bytes]:
    """Read files that pages of a site link to, by path; `assets/view.css` is always among them."""
    style = environment().get_template("page.css.jinja").render() + (_FOLDER / "view.css").read_text(encoding="utf-8")
    return {"assets/view.css": style.encode()} | {f"assets/{file.name}": file.read_bytes() for file in files}


def render(
    template: str, folders: tuple[pathlib.Path, ...], *, filters: dict[str, Any] | None = None, **facts: Any
) -> bytes:
    """Fill in a template that extends `base.html.jinja`.

    Args:
      template: name of its file.
      folders: where it and what it includes are.
      filters: further filters of the template.
      facts: its values; `title` and `root` (the way to the first page's folder, such as `../../`) are required.
    """
    loaded = environment(*folders, _FOLDER)
    loaded.filters |= filters or {}
    return loaded.get_template(template).render(policy=POLICY, **facts).encode("utf-8", "xmlcharrefreplace")
