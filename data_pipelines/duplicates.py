"""Identical images: which copy stays, and what must therefore stay together."""

from collections.abc import Mapping, Sequence

from data_pipelines.records import Record, Records


class Unions:
    """Disjoint sets of strings (union-find); a set is named after its smallest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, item: str) -> str:
        """The name of the item's set."""
        while (parent := self._parent.get(item, item)) != item:
            item = parent
        return item

    def join(self, a: str, b: str) -> None:
        """Makes the sets of `a` and `b` one."""
        first, second = sorted((self.root(a), self.root(b)))
        self._parent[second] = first


def find_duplicates(records: Records, labels: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """The images to leave out so that no pixels occur twice: image_id -> reason.

    Of a patient that is known to repeat another one (`aliases`) every image goes. Of other identical images
    the first by name stays; where their labels contradict each other, none does.
    """
    patients = set(records.column("patient_id"))
    dropped: dict[str, str] = {}
    same: dict[str, list[tuple[Record, str]]] = {}
    for record, label in zip(records, labels, strict=True):
        twin = aliases.get(record.patient_id)
        if twin in patients:
            dropped[record.image_id] = f"known duplicate: the pictures of {twin}"
        else:
            same.setdefault(record.pixel_hash, []).append((record, label))
    for copies in same.values():
        if len(copies) == 1:
            continue
        if len({label for _, label in copies}) > 1:
            for record, _ in copies:
                dropped[record.image_id] = "identical pixels under contradicting labels"
        else:
            for record, _ in sorted(copies, key=lambda copy: copy[0].image_id)[1:]:
                dropped[record.image_id] = "identical pixels, another copy is kept"
    return dropped
