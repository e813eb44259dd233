"""Pairwise comparisons of the sources of a report, with p values adjusted for their number."""

from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.errors import RunError
from histojax.evaluation import comparison, paired
from histojax.evaluation.report import section_provenance
from histojax.evaluation.report.sources import Source


def compare_pair(first: Source, second: Source, split: str, options: dict[str, Any]) -> dict[str, Any]:
    """Compare two sources; the result says why if they cannot be compared.

    Args:
      first: a source.
      second: another source; differences are second − first.
      split: as in `Source.tested`.
      options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      `first`, `second` (names), `refused` (a reason, or empty), `notes`, and what `comparison.compare` returns.
    """
    pair: dict[str, Any] = {"first": first.name, "second": second.name, "refused": ""}
    pair["notes"] = section_provenance.differing_facts(first, second)
    rows, other = (source.table[source.table["split"] == source.tested(split)] for source in (first, second))
    try:
        pair |= comparison.compare(
            rows,
            other,
            positive=first.positive,
            thresholds=[first.thresholds, second.thresholds] if first.multilabel else (None, None),
            **options,
        )
    except RunError as error:
        pair["refused"] = str(error)
    return pair


def adjust_p_values(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Add Holm's adjusted p value to each test, over all tests of its kind in the report."""
    compared = [pair for pair in pairs if not pair["refused"]]
    _adjust([test for pair in compared for test in pair["mcnemar"].values()], "mid_p")
    _adjust([test["images"] for pair in compared for test in pair["auroc"].values()], "p")


def _adjust(tests: Sequence[dict[str, Any]], key: str) -> None:
    tests = [test for test in tests if test[key] is not None]
    for test, p in zip(tests, paired.holm([test[key] for test in tests]), strict=True):
        test["holm_p"] = p
