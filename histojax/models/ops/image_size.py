"""Checks of image height and width, shared by the models."""

from __future__ import annotations

SMALLEST = 32  # pixels: convolutional networks halve the image five times


def check_at_least(smallest: int, *sizes: int) -> None:
    """Raise ValueError if an image height or width is below `smallest` pixels."""
    if min(sizes) < smallest:
        listed = "×".join(map(str, sizes))
        raise ValueError(f"image height and width must be at least {smallest}, not {listed}")


def check_multiple_of(multiple: int, *sizes: int) -> None:
    """Raise ValueError, naming the nearest legal sizes, if a height or width is not a multiple of `multiple` pixels."""
    for size in sizes:
        if size < 1 or size % multiple:
            below = max(size, 0) // multiple * multiple
            nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(f"image height and width must be multiples of {multiple}, not {size}: use {nearest}")
