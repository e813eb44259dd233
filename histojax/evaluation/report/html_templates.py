"""Templates of HTML pages: escaping, and names that cannot disguise themselves."""

import base64
import pathlib

import jinja2


def environment(*folders: pathlib.Path) -> jinja2.Environment:
    """Load the templates of `folders`, then of this one. Every value is escaped, and a missing value is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, pathlib.Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def printable(text: str) -> str:
    """Escape line ends, control characters and direction marks, so that a name cannot disguise itself."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def inline(data: bytes, media_type: str) -> str:
    """Encode an image as a data URL; `media_type` is such as `image/jpeg`."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
