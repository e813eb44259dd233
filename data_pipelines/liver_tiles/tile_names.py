"""Names of the tiles that are cut out of an image."""

import re

_CUT = re.compile(r"(.+)@x(\d+)y(\d+)", re.DOTALL)


def tile_name(image_id: str, x: int, y: int) -> str:
    """Name the tile of an image whose left and upper edges are at x and y, in pixels."""
    return f"{image_id}@x{x}y{y}"


def parse_tile_name(name: str) -> tuple[str, int, int] | None:
    """Return the image, x and y of a name that `tile_name` made; None for other names."""
    match = _CUT.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match else None
