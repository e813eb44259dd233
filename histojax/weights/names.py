"""Conversion of weights between the names of other implementations and our parameter paths.

The names are those of a model's `ModelSpec`; see `histojax.models.naming`. This module imports models for annotations
only, because reading and converting weights does not need jax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from histojax.weights.detection import Shapes, detect, their_shapes
from histojax.weights.errors import MismatchError, WeightsError, short, some

if TYPE_CHECKING:
    from histojax.models.naming.rules import Naming, Rule
    from histojax.models.registry import ModelSpec

_FLOATS = ("float16", "float32", "float64", "bfloat16")


class _Source(NamedTuple):
    """Where one of our arrays comes from: its rule, its names in the file, and the shapes that those should have."""

    rule: Rule
    names: tuple[str, ...]
    shapes: list[tuple[int, ...]]


@dataclass(frozen=True)
class _Plan:
    """Where the arrays of a model come from, if the file uses one naming.

    Attributes:
      backbone: path -> source, for arrays that the file must have.
      head: path -> source, for the classifier.
      initial: path -> reason, for arrays that no file with this naming has.
      uncovered: paths outside the classifier for which the naming has no rule: the file is for another model.
    """

    backbone: dict[str, _Source] = field(default_factory=dict)
    head: dict[str, _Source] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    uncovered: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Result of `convert`.

    Attributes:
      model: name of the model.
      naming: title of the naming that the file uses.
      prefix: prefix of the names in the file.
      loaded: number of arrays loaded.
      initial: path -> reason, for parameters that keep their initial values.
      left_out: names in the file that were not needed.
    """

    model: str
    naming: str
    prefix: str
    loaded: int
    initial: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        prefix = f" behind {self.prefix!r}" if self.prefix else ""
        lines = [f"{self.model}: {self.loaded} arrays loaded by {self.naming} names{prefix}"]
        reasons: dict[str, list[str]] = {}
        for path, reason in self.initial.items():
            reasons.setdefault(reason, []).append(path)
        lines += [f"initial values kept, {reason}: {some(paths)}" for reason, paths in reasons.items()]
        if self.left_out:
            lines.append(f"in the file, but not needed: {some(self.left_out)}")
        return "\n".join(lines)


def convert(
    arrays: Mapping[str, np.ndarray],
    spec: ModelSpec,
    expected: Shapes,
    *,
    classifier: str | None = None,
    prefix: str | None = None,
    source: str = "the weights",
) -> tuple[dict[str, np.ndarray], Report]:
    """Map the arrays of a file to our paths, layouts and types.

    Args:
      arrays: by the file's names, as `files.read` returns them.
      spec: the model.
      expected: shape and type of every parameter and statistic of the model, by path.
      classifier: prefix of the classifier's paths; the model's own by default. If the file has no classifier, or one of
        another shape (another number of classes), its paths are missing from the values and the report says so.
      prefix: prefix of the names in the file, or its beginning, if the file holds several networks that fit.
      source: name of the file for messages.

    Returns:
      Values by path, contiguous and in the expected types, and the report. Paths without a value keep their initial
      values.

    Raises:
      MismatchError: names are missing, unexpected or misshapen; the error lists all of them.
      WeightsError: the names match no known naming, or several networks; or values are NaN or infinite.
    """
    naming, prefix = detect(arrays, spec, expected, prefix, source)
    plan = _plan(naming, prefix, spec, expected, spec.classifier if classifier is None else classifier)
    initial, sources = dict(plan.initial), dict(plan.backbone)
    missing, misshapen = _differences(arrays, plan.backbone)
    head_missing, head_misshapen = _differences(arrays, plan.head)
    if head_missing or head_misshapen:
        why = "the file has no classifier" if head_missing else "the classifier in the file has another shape"
        initial.update(dict.fromkeys(plan.head, why))
    else:
        sources.update(plan.head)
    used = {name for origin in sources.values() for name in origin.names}
    left_out, unexpected = _leftover(arrays, used, naming, prefix, spec, expected)
    if missing or misshapen or unexpected or plan.uncovered:
        behind = f" behind {prefix!r}" if prefix else ""
        raise MismatchError(
            f"{source}: these are not weights of {spec.name} (read as {naming.title} names{behind}):",
            missing + plan.uncovered,
            unexpected,
            misshapen,
            "Name weights of this architecture and size, or the model that these are for.",
        )
    values = {path: _value(arrays, sources[path], expected[path][1]) for path in expected if path in sources}
    _check_finite(values, sources, source)
    return values, Report(spec.name, naming.title, prefix, len(values), initial, tuple(left_out))


def export(
    values: Mapping[str, np.ndarray], spec: ModelSpec, naming: str | None = None, *, leave_out_new: bool = False
) -> dict[str, np.ndarray]:
    """Map our arrays to the names and layouts of another implementation: the inverse of `convert`.

    Args:
      values: all parameters and statistics of the model, by path.
      spec: the model.
      naming: title of the naming; the model's first by default.
      leave_out_new: leave out the parts that the model adds to that implementation, instead of raising an error.

    Returns:
      Arrays by name. They are contiguous, because safetensors writes the bytes of other arrays in the wrong order.

    Raises:
      WeightsError: an unknown naming, or one without names for some of the paths.
    """
    titles = [known.title for known in spec.namings]
    if naming is not None and naming not in titles:
        raise WeightsError(f"{spec.name} has no naming {naming!r}; known: {', '.join(titles)}")
    target = spec.namings[0 if naming is None else titles.index(naming)]
    arrays: dict[str, np.ndarray] = {}
    without = []
    for path, value in values.items():
        found = target.rule(path)
        if found is None or spec.is_new(path):
            without.append(path)
            continue
        rule, names, _ = found
        parts = rule.transform.theirs(np.asarray(value))
        arrays.update((name, np.array(part, order="C")) for name, part in zip(names, parts, strict=True))
    if without and not leave_out_new:
        raise WeightsError(
            f"{target.title} has no names for {some(without)} of {spec.name}; use --naming=histojax, which names all"
        )
    return arrays | (target.derived(arrays) if target.derived else {})


def _plan(naming: Naming, prefix: str, spec: ModelSpec, expected: Shapes, classifier: str) -> _Plan:
    """Find the source of every expected path under a naming and a prefix."""
    plan = _Plan()
    for path, (shape, _) in expected.items():
        in_head = path.startswith(classifier)
        if spec.is_new(path):
            plan.initial[path] = f"{spec.name} adds them"
        elif (found := naming.rule(path)) is None:
            plan.initial[path] = f"{naming.title} files have none"
            if not in_head:
                plan.uncovered.append(path)
        else:
            rule, names, _ = found
            target = plan.head if in_head else plan.backbone
            target[path] = _Source(rule, tuple(prefix + name for name in names), their_shapes(rule, shape))
    return plan


def _differences(arrays: Mapping[str, np.ndarray], sources: Mapping[str, _Source]) -> tuple[list[str], list[str]]:
    """Describe the names that are missing from the file, and those of another shape or of integers."""
    missing, misshapen = [], []
    for _, names, shapes in sources.values():
        for name, shape in zip(names, shapes, strict=True):
            if name not in arrays:
                missing.append(f"{name} {shape}")
            elif arrays[name].shape != shape:
                misshapen.append(f"{short(name)} is {short(arrays[name].shape)}, the model has {shape}")
            elif arrays[name].dtype.name not in _FLOATS:
                misshapen.append(f"{short(name)} is {arrays[name].dtype}, the model has floating-point numbers")
    return missing, misshapen


def _leftover(
    arrays: Mapping[str, np.ndarray], used: set[str], naming: Naming, prefix: str, spec: ModelSpec, expected: Shapes
) -> tuple[list[str], list[str]]:
    """Return the unused names of the file: those that are not needed, and those that should not be there."""
    left_out, unexpected = [], []
    in_later_stage = _later_stage_test(naming, spec, expected) if spec.ignores_later_stages else None
    for name in arrays:
        if name in used:
            continue
        bare = name.removeprefix(prefix)
        # Names without the prefix belong to another network, such as the head of a pretext task.
        beside = not name.startswith(prefix)
        not_needed = any(re.search(pattern, bare) for pattern in naming.ignored) or bare.startswith(naming.classifier)
        if beside or not_needed or (in_later_stage is not None and in_later_stage(bare)):
            left_out.append(name)
        else:
            unexpected.append(f"{short(name)} {arrays[name].shape}")
    return left_out, unexpected


def _later_stage_test(naming: Naming, spec: ModelSpec, expected: Shapes) -> Callable[[str], bool]:
    """Return a test whether a name belongs to a later stage than the model has, or to the layers after the last stage.

    Only the stage counts: additional blocks within a stage belong to a larger model, whose weights do not fit.
    """
    last: dict[Rule, int] = {}
    for path in expected:
        if not spec.is_new(path) and (found := naming.rule(path)) is not None:
            last[found[0]] = max(last.get(found[0], -1), found[2].get("i", 0))

    def in_later_stage(name: str) -> bool:
        for rule in naming.rules:
            for template in rule.name_templates:
                if (numbers := template.parse(name)) is not None:
                    return numbers.get("i", 0) > last.get(rule, -1)
        return False

    return in_later_stage


def _value(arrays: Mapping[str, np.ndarray], source: _Source, dtype: Any) -> np.ndarray:
    value = source.rule.transform.ours([arrays[name] for name in source.names])
    with np.errstate(over="ignore"):  # `_check_finite` reports an infinity by name
        return np.array(value, dtype=dtype, order="C")


def _check_finite(values: Mapping[str, np.ndarray], sources: Mapping[str, _Source], file: str) -> None:
    """Raise WeightsError, naming the arrays in the file, if a value is NaN or infinite."""

    def finite(value: np.ndarray) -> bool:
        wide = value.astype(np.float32) if value.dtype in (np.float16, ml_dtypes.bfloat16) else value
        return bool(np.isfinite(wide).all())

    bad = [name for path, value in values.items() if not finite(value) for name in sources[path].names]
    if bad:
        raise WeightsError(
            f"{file}: NaN or infinite values in {some(bad)}. The training that wrote them diverged, or the file is "
            "damaged: use an earlier one."
        )
