"""The class that counts as positive by its name, in every table of results."""

from collections.abc import Collection

MALIGNANT = "malignant"


def positive_by_name(classes: Collection[str]) -> str | None:
    """Return `malignant` if it is one of the classes; None: no name says which one is positive."""
    return MALIGNANT if MALIGNANT in classes else None
