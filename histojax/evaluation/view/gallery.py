"""A gallery of images with a model's probabilities: sorted by error or confidence, with Grad-CAM where there is one."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.evaluation.report.html_templates import printable
from histojax.evaluation.thresholds import is_positive
from histojax.evaluation.view import site

MOST_IMAGES = 5000  # of a gallery; a page with more would be slow
_FOLDER = pathlib.Path(__file__).parent
_PICTURE = re.compile(r"pictures/(\d{1,9})(?:_(\d{1,9}))?\.jpg")

# Returns the JPEG of an image by its number, or of one of its maps; None: there is none.
Pictures = Callable[[int, int | None], bytes | None]


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of a gallery.

    Attributes:
      image_id: its name.
      probabilities: class or label -> probability; of the classes that are explained, if it has maps.
      truth: its true classes or labels; None: not known.
      predicted: its predicted classes or labels; None: not known.
      facts: what else is shown below it, such as its patient.
      maps: classes of its maps, in the order of their numbers.
      split: the split that it belongs to; may be empty.
    """

    image_id: str
    probabilities: Mapping[str, float]
    truth: frozenset[str] | None
    predicted: frozenset[str] | None
    facts: Sequence[str] = ()
    maps: Sequence[str] = ()
    split: str = ""

    @property
    def error(self) -> float | None:
        """The largest distance between a probability and the truth; None without a truth."""
        if self.truth is None:
            return None
        return max(abs(p - (name in self.truth)) for name, p in self.probabilities.items())

    @property
    def confidence(self) -> float | None:
        """The least probability of what is predicted; None where that is not known."""
        if self.predicted is None:
            return None
        decided = [p for name, p in self.probabilities.items() if name in self.predicted]
        return min(decided) if decided else min(1 - p for p in self.probabilities.values())

    @property
    def wrong(self) -> bool | None:
        """Whether the prediction differs from the truth; None where one of them is not known."""
        return None if self.truth is None or self.predicted is None else self.truth != self.predicted


class Gallery:
    """The page of some images; see `site.Site`."""

    def __init__(self, title: str, items: Sequence[Item], classes: Sequence[str], pictures: Pictures) -> None:
        """Choose the images that are shown: of more than `MOST_IMAGES`, those of the largest error.

        Args:
          title: of the page.
          items: the images.
          classes: classes or labels, in order.
          pictures: makes the picture of an item, by its index in `items`.

        Raises:
          RunError: there is no image.
        """
        if not items:
            raise RunError(f"{title}: has no image")
        self._title, self._classes, self._pictures, self._total = title, classes, pictures, len(items)
        # Without a truth, an image counts as the worse the less confident its prediction is.
        worst = np.array([-(item.error if item.error is not None else 1 - (item.confidence or 0)) for item in items])
        self._items = [(int(i), items[int(i)]) for i in np.argsort(worst, kind="stable")[:MOST_IMAGES]]
        self._assets = site.assets(_FOLDER / "gallery.js")

    def paths(self) -> Iterator[str]:
        """Yield every path of the site."""
        yield site.INDEX
        yield from self._assets
        for number, (_, item) in enumerate(self._items):
            yield f"pictures/{number}.jpg"
            yield from (f"pictures/{number}_{i}.jpg" for i in range(len(item.maps)))

    def read(self, path: str) -> bytes | None:
        """Return the content of a path; None if there is no such path.

        Raises:
          RunError: a picture cannot be read.
        """
        if path == site.INDEX:
            return self._page
        if path in self._assets:
            return self._assets[path]
        if not (match := _PICTURE.fullmatch(path)) or int(match[1]) >= len(self._items):
            return None
        index, item = self._items[int(match[1])]
        number = None if match[2] is None else int(match[2])
        return None if number is not None and number >= len(item.maps) else self._pictures(index, number)

    @functools.cached_property
    def _page(self) -> bytes:
        items = [item for _, item in self._items]
        facts: dict[str, Any] = {
            "truths": any(item.truth is not None for item in items),
            "compared": any(item.wrong is not None for item in items),
            "wrong": sum(bool(item.wrong) for item in items),
            "splits": sorted({item.split for item in items} - {""}),
            "maps": sorted({name for item in items for name in item.maps}, key=list(self._classes).index),
            "total": self._total,
            "data": {"classes": list(map(printable, self._classes)), "items": list(map(self._described, items))},
        }
        return site.render(
            "gallery.html.jinja", (), title=self._title, root="", classes=self._classes, shown=len(items), **facts
        )

    def _described(self, item: Item) -> dict[str, Any]:
        """An item as the page's script takes it; classes are numbers."""
        numbers = {name: number for number, name in enumerate(self._classes)}
        sets = {"truth": item.truth, "predicted": item.predicted}
        return {
            "name": printable(item.image_id),
            "facts": [printable(fact) for fact in item.facts],
            "probabilities": [[numbers[name], round(float(p), 4)] for name, p in item.probabilities.items()],
            "maps": [numbers[name] for name in item.maps],
            "split": printable(item.split),
            "error": item.error,
            "confidence": item.confidence,
            "wrong": item.wrong,
        } | {key: None if names is None else sorted(numbers[n] for n in names) for key, names in sets.items()}


def items_of_table(table: pd.DataFrame, where: str, thresholds: Mapping[str, float]) -> list[Item]:
    """Describe the images of a table of predictions, with or without labels.

    Args:
      table: as `predictions.load` reads it.
      where: name of the table, for messages.
      thresholds: label -> threshold, for a table with several labels that does not state which are predicted.

    Raises:
      RunError: the table has no images or no probabilities.
    """
    classes = predictions.class_names(table)
    if "image_id" not in table or not classes:
        raise RunError(f"{where}: no column `image_id`, or none that starts with `prob_`: not a table of predictions")
    numbers = table[[predictions.PREFIX + name for name in classes]].apply(pd.to_numeric, errors="coerce").to_numpy()
    if not ((numbers >= -predictions.RANGE_TOLERANCE) & (numbers <= 1 + predictions.RANGE_TOLERANCE)).all():
        raise RunError(f"{where}: a cell of the columns prob_… is no number in 0 … 1; predict the images again")
    text = {name: predictions.as_text(table[name]).tolist() for name in ("image_id", "label", "patient_id", "split",
            "predicted") if name in table}  # fmt: skip
    truths = _sets(table, classes, predictions.LABEL_PREFIX, text.get("label"))
    predicted = _sets(table, classes, "predicted_", text.get("predicted"))
    if predicted is None:
        several = predictions.is_multilabel(table)
        cuts = np.array([thresholds.get(name, 0.5) for name in classes])
        chosen = is_positive(numbers, cuts) if several else np.eye(len(classes), dtype=bool)[numbers.argmax(1)]
        predicted = _named(chosen, classes)
    return [
        Item(
            text["image_id"][i],
            dict(zip(classes, numbers[i].tolist(), strict=True)),
            truths[i] if truths is not None else None,
            predicted[i],
            [f"patient {text['patient_id'][i]}"] if text.get("patient_id", [""] * len(table))[i] else [],
            split=text["split"][i] if "split" in text else "",
        )
        for i in range(len(table))
    ]


def _sets(
    table: pd.DataFrame, classes: Sequence[str], prefix: str, single: Sequence[str] | None
) -> list[frozenset[str] | None] | None:
    """The classes of each image by a column of names, joined by `+`, or by columns of 0 and 1; None without both."""
    if all(prefix + name in table for name in classes):
        flags = table[[prefix + name for name in classes]].apply(pd.to_numeric, errors="coerce").to_numpy() == 1
        return _named(flags, classes)
    if single is None:
        return None
    known = set(classes)
    found = [frozenset([text] if text in known else filter(None, text.split("+"))) for text in single]
    # A name that is no class cannot be compared with a prediction.
    return [names if text and names <= known else None for text, names in zip(single, found, strict=True)]


def _named(flags: Any, classes: Sequence[str]) -> list[frozenset[str] | None]:
    return [frozenset(name for name, flag in zip(classes, row, strict=True) if flag) for row in flags]
