"""audit.html: a dataset's audit on one page, with thumbnails inside, for a browser or for print."""

import os
from collections.abc import Mapping
from typing import Any

from histojax.core.files import atomic_write
from histojax.evaluation.report import html_templates

SHOWN = 60  # sets of equal images that are shown with thumbnails
_PER_SET = 6  # images shown per set
_LISTED = 50  # entries shown of any other list


def names_shown(facts: Mapping[str, Any]) -> list[str]:
    """List the images of which `render` shows a thumbnail."""
    return [name for entry in facts["duplicates"][:SHOWN] for name in entry["images"][:_PER_SET]]


def write(path: str | os.PathLike[str], facts: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> None:
    """Write the page of `render` atomically."""
    page = render(facts, thumbnails)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def render(facts: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> str:
    """Render one HTML page that needs no other file and no network. Every value is escaped.

    Args:
      facts: as `data_pipelines.audit` returns them.
      thumbnails: image name -> JPEG file, for the images of `names_shown`.

    Raises:
      KeyError: a fact is missing.
      jinja2.UndefinedError: a fact that the template needs is missing.
    """
    environment = html_templates.environment()
    environment.filters["file"] = lambda name: name.rpartition("/")[2]
    odd = facts["odd_patients"]
    patients = facts["colours"]["patients"]
    return environment.get_template("audit.html.jinja").render(
        facts=facts,
        magnifications=sorted(
            {m for row in facts["counts"].values() for m in row["magnifications"]}, key=lambda m: (len(m), m)
        ),
        patients=dict(sorted(patients.items(), key=lambda item: item[0] not in odd)[:_LISTED]),
        thumbnails={name: html_templates.inline(data, "image/jpeg") for name, data in thumbnails.items()},
        shown=SHOWN,
        per_set=_PER_SET,
        listed=_LISTED,
    )
