"""Finding the naming and the prefix of the names in a file: those under which most of a model's arrays are found."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from histojax.weights.errors import PREFIX_OPTION, WeightsError, some

if TYPE_CHECKING:
    from histojax.models.naming.rules import Naming, Rule
    from histojax.models.registry import ModelSpec

# Path -> shape and type.
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]

_BOUNDARY = re.compile(r"[./]")
_LEAST = 0.1  # fraction of a model's names below which a file's names are of another kind


class _Fit(NamedTuple):
    """A naming and a prefix, the names in the file that they explain, and how many more explain the classifier."""

    naming: Naming
    prefix: str
    fraction: float
    found: frozenset[str]
    in_head: int


def detect(
    arrays: Mapping[str, np.ndarray], spec: ModelSpec, expected: Shapes, prefix: str | None, source: str
) -> tuple[Naming, str]:
    """Return the naming and the prefix under which the file has most of the model's names.

    Any beginning of a name up to a dot or slash can be the prefix.

    Args:
      arrays: by the file's names.
      spec: the model.
      expected: shape and type of every parameter and statistic of the model, by path.
      prefix: the prefix, or its beginning, chosen by the user; None: any.
      source: name of the file for messages.

    Raises:
      WeightsError: the names match no known naming, or several networks fit equally.
    """
    fits = [fit for naming in spec.namings for fit in _fits(arrays, naming, spec, expected)]
    if prefix is not None:
        fits = [fit for fit in fits if fit.prefix == prefix] or [fit for fit in fits if fit.prefix.startswith(prefix)]
    best = max((fit.fraction for fit in fits), default=0.0)
    if best < _LEAST:
        known = "; ".join(f"{naming.title} ({_example(naming)} …)" for naming in spec.namings)
        behind = f" behind {prefix!r}" if prefix else ""
        raise WeightsError(
            f"{source}: its names{behind}, {some(arrays)}, are not those of {spec.name}. Known are: {known}. "
            "Name weights of this architecture, or the model that these are for."
        )
    equal = _without_equals([fit for fit in fits if fit.fraction == best])
    fits = _right_shapes(arrays, spec, expected, equal)
    if len(prefixes := sorted({fit.prefix for fit in fits})) > 1:
        listed = ", ".join(map(repr, prefixes))
        raise WeightsError(f"{source}: it holds several such networks; choose one with {PREFIX_OPTION}: {listed}")
    return fits[0].naming, fits[0].prefix


def their_shapes(rule: Rule, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that the arrays of a rule have in a file, for our array of this shape."""
    # Transforms only move elements, so one broadcast element is enough to find the shapes.
    return [part.shape for part in rule.transform.theirs(np.broadcast_to(np.float32(0), shape))]


def _fits(arrays: Mapping[str, np.ndarray], naming: Naming, spec: ModelSpec, expected: Shapes) -> Iterator[_Fit]:
    """Yield every prefix behind which the file has a name of this naming."""
    wanted, head, without_name = set[str](), set[str](), 0
    for path in expected:
        if spec.is_new(path):
            continue
        in_classifier, found = path.startswith(spec.classifier), naming.rule(path)
        if found is not None:
            (head if in_classifier else wanted).update(found[1])
        elif not in_classifier:
            without_name += 1
    names, in_head = defaultdict[str, set[str]](set), defaultdict[str, int](int)
    for name in arrays:
        for start in (0, *(match.end() for match in _BOUNDARY.finditer(name))):
            if name[start:] in wanted:
                names[name[:start]].add(name)
            elif name[start:] in head:
                in_head[name[:start]] += 1
    for prefix, found_names in names.items():
        fraction = len(found_names) / (len(wanted) + without_name)
        yield _Fit(naming, prefix, fraction, frozenset(found_names), in_head[prefix])


def _without_equals(fits: Sequence[_Fit]) -> list[_Fit]:
    """Keep one of the fits that explain the same names: the first of those that also explain most of the classifier."""
    kept: dict[frozenset[str], _Fit] = {}
    for fit in fits:
        if fit.found not in kept or fit.in_head > kept[fit.found].in_head:
            kept[fit.found] = fit
    return list(kept.values())


def _right_shapes(arrays: Mapping[str, np.ndarray], spec: ModelSpec, expected: Shapes, fits: list[_Fit]) -> list[_Fit]:
    """Keep the fits under which most arrays have the model's shapes: a file may hold networks of several sizes."""
    if len(fits) == 1:
        return fits
    counts = [_count_shapes(arrays, spec, expected, fit) for fit in fits]
    return [fit for fit, count in zip(fits, counts, strict=True) if count == max(counts)]


def _count_shapes(arrays: Mapping[str, np.ndarray], spec: ModelSpec, expected: Shapes, fit: _Fit) -> int:
    count = 0
    for path, (shape, _) in expected.items():
        found = fit.naming.rule(path)
        if spec.is_new(path) or path.startswith(spec.classifier) or found is None:
            continue
        rule, names, _ = found
        try:
            shapes = their_shapes(rule, shape)
        except ValueError:  # this naming has no form for the model's size
            return 0
        stored = [arrays[fit.prefix + name].shape if fit.prefix + name in arrays else None for name in names]
        count += stored == shapes
    return count


def _example(naming: Naming) -> str:
    """Return one name of a naming, for messages."""
    return naming.rules[0].name_templates[0].format(dict.fromkeys("ijkn", 0))
