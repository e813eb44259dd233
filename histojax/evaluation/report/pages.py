"""What pages made of templates share: escaping, and names that cannot disguise themselves."""

import base64
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def environment() -> "jinja2.Environment":
    """Templates of this folder: whatever is put in is escaped, and what is missing is an error."""
    import jinja2  # of the extra `report`: model cards are written without it

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def printable(text: str) -> str:
    """The text with line ends, control and direction marks as escapes, so that no name can disguise itself."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def inline(data: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` as in `image/jpeg`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
