"""Identical images: which copy is kept, and which groups must stay together because of copies."""

from collections.abc import Mapping, Sequence

from data_pipelines.records import Record, Records

_FIRST = ("test", "val")


class Unions:
    """Disjoint sets of strings (union-find); a set is named after its smallest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, item: str) -> str:
        """Return the name of the item's set."""
        while (parent := self._parent.get(item, item)) != item:
            item = parent
        return item

    def join(self, a: str, b: str) -> None:
        """Merge the sets of `a` and `b`."""
        first, second = sorted((self.root(a), self.root(b)))
        self._parent[second] = first


def find_duplicates(
    records: Records, labels: Sequence[str], aliases: Mapping[str, str], sides: Mapping[str, str]
) -> dict[str, str]:
    """Find the images to drop so that no pixels occur twice.

    All images of a patient that is known to repeat another one (`aliases`) are dropped. Of other identical images the
    first by name is kept, but a test image before a validation image and that before others, so that a split that is
    given tests what it says. If their labels contradict each other, none is kept.

    Args:
      records: the table.
      labels: label of each record.
      aliases: patient -> patient whose images are the same pictures.
      sides: image_id -> side, as far as it is known in advance.

    Returns:
      image_id -> reason.
    """
    patients = set(records.column("patient_id"))
    dropped: dict[str, str] = {}
    by_pixels: dict[str, list[tuple[Record, str]]] = {}
    for record, label in zip(records, labels, strict=True):
        twin = aliases.get(record.patient_id)
        if twin in patients:
            dropped[record.image_id] = f"known duplicate: the pictures of {twin}"
        else:
            by_pixels.setdefault(record.pixel_hash, []).append((record, label))
    for copies in by_pixels.values():
        if len(copies) == 1:
            continue
        if len({label for _, label in copies}) > 1:
            for record, _ in copies:
                dropped[record.image_id] = "identical pixels under contradicting labels"
        else:
            for record, _ in sorted(copies, key=lambda copy: _rank(copy[0].image_id, sides))[1:]:
                dropped[record.image_id] = "identical pixels, another copy is kept"
    return dropped


def _rank(image_id: str, sides: Mapping[str, str]) -> tuple[int, str]:
    side = sides.get(image_id, "")
    return (_FIRST.index(side) if side in _FIRST else len(_FIRST)), image_id
