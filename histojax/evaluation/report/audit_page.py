"""A dataset's audit on one page: audit.html, with thumbnails inside, to be read in a browser or printed."""

import os
from collections.abc import Mapping
from typing import Any

from histojax.core.files import atomic_write
from histojax.evaluation.report import pages

SHOWN = 60  # sets of equal pictures with thumbnails
_OF_ONE = 6  # images shown of one set
_LISTED = 50  # of anything else


def names_shown(facts: Mapping[str, Any]) -> list[str]:
    """The images of which `render` shows a thumbnail."""
    return [name for entry in facts["duplicates"][:SHOWN] for name in entry["images"][:_OF_ONE]]


def write(path: str | os.PathLike[str], facts: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> None:
    """Writes what `render` gives, whole or not at all."""
    page = render(facts, thumbnails)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def render(facts: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> str:
    """One HTML page that needs no other file and no network; everything from outside is escaped.

    Args:
      facts: as `data_pipelines.audit` gives them.
      thumbnails: JPEG files by image name, of `names_shown`.

    Raises KeyError or jinja2.UndefinedError for facts that are missing.
    """
    environment = pages.environment()
    environment.filters["file"] = lambda name: name.rpartition("/")[2]
    odd = facts["odd_patients"]
    patients = facts["colours"]["patients"]
    return environment.get_template("audit.html.jinja").render(
        facts=facts,
        magnifications=sorted(
            {m for row in facts["counts"].values() for m in row["magnifications"]}, key=lambda m: (len(m), m)
        ),
        patients=dict(sorted(patients.items(), key=lambda item: item[0] not in odd)[:_LISTED]),
        thumbnails={name: pages.inline(data, "image/jpeg") for name, data in thumbnails.items()},
        shown=SHOWN,
        of_one=_OF_ONE,
        listed=_LISTED,
    )
