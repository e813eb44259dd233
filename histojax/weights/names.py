"""From the names of a public implementation to the paths of our parameters, and back.

A `Table` is made for a model, with one `Naming` for each implementation whose files are about. A rule has templates on
both sides: `features.{i*2+1}.{j}.norm1.weight` and `stages/{i}/{j}/norm1/scale` stand for the same array. The paths are
strings as `jax.tree_util.keystr(path, simple=True, separator="/")` gives, so that this room needs no JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from histojax.weights.errors import MismatchError, WeightsError, short
from histojax.weights.transforms import SAME, Transform

# What wrappers of modules put before the names; only these are looked for.
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "teacher.", "student.", "encoder_q.", "base_encoder.", "net.")
_FIELD = re.compile(r"\{(\w+)(?:\*(\d+))?(?:([+-]\d+))?\}")
_FLOATS = ("float16", "float32", "float64", "bfloat16")

# Path -> shape and type.
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]


@dataclass(frozen=True)
class Template:
    """A name with numbers in it: `{i}`, or `{i*2+1}` where the implementation counts otherwise."""

    text: str

    @cached_property
    def _parts(self) -> tuple[re.Pattern[str], list[tuple[str, int, int]]]:
        fields = [(m[1], int(m[2] or 1), int(m[3] or 0)) for m in _FIELD.finditer(self.text)]
        literals = [re.escape(part) for part in _FIELD.sub("\0", self.text).split("\0")]
        return re.compile(r"(\d{1,6})".join(literals)), fields

    def parse(self, name: str) -> dict[str, int] | None:
        """The numbers in a name, or None where it is not of this form."""
        pattern, fields = self._parts
        match = pattern.fullmatch(name)
        if match is None:
            return None
        numbers: dict[str, int] = {}
        for (key, factor, offset), text in zip(fields, match.groups(), strict=True):
            number, rest = divmod(int(text) - offset, factor)
            if rest or number < 0 or str(int(text)) != text or numbers.setdefault(key, number) != number:
                return None
        return numbers

    def format(self, numbers: Mapping[str, int]) -> str:
        """The name with these numbers."""
        return _FIELD.sub(lambda m: str(numbers[m[1]] * int(m[2] or 1) + int(m[3] or 0)), self.text)


@dataclass(frozen=True)
class Rule:
    """One array of ours, and the names (one, or several that are joined) that the file has it under."""

    path: str
    names: str | tuple[str, ...]
    transform: Transform = SAME

    @cached_property
    def templates(self) -> tuple[Template, tuple[Template, ...]]:
        """Path, names."""
        names = (self.names,) if isinstance(self.names, str) else self.names
        return Template(self.path), tuple(map(Template, names))


# A rule, the names that it takes in the file, and the shapes that they should have.
_Source = tuple[Rule, tuple[str, ...], list[tuple[int, ...]]]


@dataclass(frozen=True)
class Naming:
    """The names of one implementation.

    `classifier` begins the names of the classifier in files; `ignored` are expressions for what is no parameter
    (indices, masks). `derived` makes the arrays that the implementation stores although they follow from the others,
    for `export`, from the exported ones.
    """

    title: str
    rules: tuple[Rule, ...]
    classifier: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    derived: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None

    def rule(self, path: str) -> tuple[Rule, tuple[str, ...], Mapping[str, int]] | None:
        """Rule, names and numbers for a path of ours; None where no rule has it."""
        for rule in self.rules:
            template, names = rule.templates
            if (numbers := template.parse(path)) is not None:
                return rule, tuple(name.format(numbers) for name in names), numbers
        return None


@dataclass(frozen=True)
class Table:
    """How the weights of a model are called elsewhere.

    `classifier` begins the paths of its classifier. `new` are expressions, matched from the start, for the paths of
    parts that no public file has: they keep their initial values. `partial`: files hold later stages, too, which the
    model does not have.
    """

    model: str
    namings: tuple[Naming, ...]
    classifier: str = "head/"
    new: tuple[str, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class Report:
    """What `convert` did: which naming and prefix the file has, what was loaded, what kept its initial values, and why.

    `initial` maps paths to reasons; `left_out` are names in the file that were not needed.
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
        lines += [f"initial values kept, {reason}: {_some(paths)}" for reason, paths in reasons.items()]
        if self.left_out:
            lines.append(f"in the file, but not needed: {_some(self.left_out)}")
        return "\n".join(lines)


def convert(
    arrays: Mapping[str, np.ndarray],
    table: Table,
    expected: Shapes,
    *,
    classifier: str | None = None,
    prefix: str | None = None,
    source: str = "the weights",
) -> tuple[dict[str, np.ndarray], Report]:
    """Map the arrays of a file to our paths, layouts and types.

    Args:
      arrays: by the file's names, as `files.read` returns them.
      table: of the model.
      expected: shape and type of every parameter and statistic of the model, by path.
      classifier: begins the paths of the classifier; the table's own by default. Where the file has none, or one of
        another shape (another number of classes), its paths are not among the values returned, and the report says so.
      prefix: of the names in the file, where it holds several networks that fit.
      source: the file, for messages.

    Returns:
      Values by path, contiguous, in the types expected, and the report. Paths without a value keep theirs.

    Raises:
      MismatchError: names are missing, unexpected or misshapen, all at once.
      WeightsError: the names are of no known naming, or of several networks; or values are NaN or infinite.
    """
    classifier = table.classifier if classifier is None else classifier
    naming, prefix = _detect(arrays, table, expected, prefix, source)
    initial: dict[str, str] = {}
    wanted: dict[str, _Source] = {}
    head: dict[str, _Source] = {}
    for path, (shape, _) in expected.items():
        if any(re.match(pattern, path) for pattern in table.new):
            initial[path] = f"{table.model} adds them"
        elif (found := naming.rule(path)) is None:
            initial[path] = f"{naming.title} files have none"
        else:
            rule, names, _ = found
            # Only moves of elements, so one element repeated is enough to know the shapes.
            shapes = [part.shape for part in rule.transform.theirs(np.broadcast_to(np.float32(0), shape))]
            target = head if path.startswith(classifier) else wanted
            target[path] = rule, tuple(prefix + name for name in names), shapes
    unruled = [path for path, why in initial.items() if why.endswith("have none") and not path.startswith(classifier)]

    missing, misshapen = _differences(arrays, wanted)
    head_missing, head_misshapen = _differences(arrays, head)
    if head_missing or head_misshapen:
        why = "the file has no classifier" if head_missing else "the classifier in the file has another shape"
        initial.update(dict.fromkeys(head, why))
    else:
        wanted.update(head)
    used = {name for _, names, _ in wanted.values() for name in names}
    left_out, unexpected = _leftover(arrays, used, naming, prefix, table, expected)
    if missing or misshapen or unexpected or unruled:
        behind = f" behind {prefix!r}" if prefix else ""
        raise MismatchError(
            f"{source}: these are not weights of {table.model} (read as {naming.title} names{behind}):",
            missing + unruled,
            unexpected,
            misshapen,
            "Name weights of this architecture and size, or the model that these are for.",
        )
    values = {path: _value(arrays, *wanted[path][:2], dtype=expected[path][1]) for path in expected if path in wanted}
    _check_finite(values, {path: names for path, (_, names, _) in wanted.items()}, source)
    return values, Report(table.model, naming.title, prefix, len(values), initial, tuple(left_out))


def export(
    values: Mapping[str, np.ndarray], table: Table, naming: str | None = None, *, leave_out_new: bool = False
) -> dict[str, np.ndarray]:
    """Map our arrays to the names and layouts of another implementation: the inverse of `convert`.

    Args:
      values: by path, all parameters and statistics of the model.
      table: of the model.
      naming: its title; the table's first by default.
      leave_out_new: leave out, instead of refusing, what the model adds to that implementation.

    Returns:
      Arrays by name, contiguous, because safetensors writes the bytes of others in the wrong order.

    Raises:
      WeightsError: the naming is not known, or has no names for some of the paths.
    """
    titles = [known.title for known in table.namings]
    if naming is not None and naming not in titles:
        raise WeightsError(f"{table.model} has no naming {naming!r}; known: {', '.join(titles)}")
    chosen = table.namings[0 if naming is None else titles.index(naming)]
    arrays: dict[str, np.ndarray] = {}
    without = []
    for path, value in values.items():
        found = chosen.rule(path)
        if found is None or any(re.match(pattern, path) for pattern in table.new):
            without.append(path)
            continue
        rule, names, _ = found
        parts = rule.transform.theirs(np.asarray(value))
        arrays.update((name, np.array(part, order="C")) for name, part in zip(names, parts, strict=True))
    if without and not leave_out_new:
        raise WeightsError(
            f"{chosen.title} has no names for {_some(without)} of {table.model}; leave_out_new=True leaves them out"
        )
    return arrays | (chosen.derived(arrays) if chosen.derived else {})


def _detect(
    arrays: Mapping[str, np.ndarray], table: Table, expected: Shapes, prefix: str | None, source: str
) -> tuple[Naming, str]:
    """The naming and prefix by which the most expected names are there."""
    prefixes = _prefixes(arrays) if prefix is None else [prefix]
    paths = [path for path in expected if not any(re.match(pattern, path) for pattern in table.new)]
    best, choices = 0.0, []
    for naming in table.namings:
        names = [name for path in paths for name in (naming.rule(path) or (None, ()))[1]]
        for begin in prefixes:
            share = sum(begin + name in arrays for name in names) / max(len(names), 1)
            if share > best:
                best, choices = share, [(naming, begin)]
            elif share == best and best:
                choices.append((naming, begin))
    if not choices:
        known = "; ".join(f"{naming.title} ({_example(naming)} …)" for naming in table.namings)
        behind = f" behind {prefix!r}" if prefix else ""
        raise WeightsError(
            f"{source}: its names{behind}, {_some(arrays)}, are not those of {table.model}. Known are: {known}. "
            "Name weights of this architecture, or the model that these are for."
        )
    naming, begin = choices[0]
    others = sorted({other for _, other in choices} - {begin})
    if others:
        listed = ", ".join(repr(p) for p in sorted([begin, *others]))
        raise WeightsError(f"{source}: it holds several networks of the kind; say by `prefix` which one: {listed}")
    return naming, begin


def _prefixes(names: Iterable[str]) -> list[str]:
    found = {"": None}
    for name in names:
        begin = ""
        while (word := name[len(begin) :].partition(".")[0] + ".") in PREFIXES:
            begin += word
            found[begin] = None
    return list(found)


def _example(naming: Naming) -> str:
    return naming.rules[0].templates[1][0].format(dict.fromkeys("ijkn", 0))


def _differences(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, _Source]) -> tuple[list[str], list[str]]:
    missing, misshapen = [], []
    for _, names, shapes in wanted.values():
        for name, shape in zip(names, shapes, strict=True):
            if name not in arrays:
                missing.append(f"{name} {shape}")
            elif arrays[name].shape != shape:
                misshapen.append(f"{short(name)} is {short(arrays[name].shape)}, the model has {shape}")
            elif arrays[name].dtype.name not in _FLOATS:
                misshapen.append(f"{short(name)} is {arrays[name].dtype}, the model has floating-point numbers")
    return missing, misshapen


def _leftover(
    arrays: Mapping[str, np.ndarray], used: set[str], naming: Naming, prefix: str, table: Table, expected: Shapes
) -> tuple[list[str], list[str]]:
    """Names that are not used: those that are not needed, and those that should not be there."""
    left_out, unexpected = [], []
    beyond = _beyond(naming, table, expected) if table.partial else None
    for name in arrays:
        if name in used:
            continue
        bare = name.removeprefix(prefix)
        # Behind a prefix lies one network; what lies beside it is another, such as the head of a pretext task.
        beside = not name.startswith(prefix)
        needless = any(re.search(pattern, bare) for pattern in naming.ignored) or bare.startswith(naming.classifier)
        if beside or needless or (beyond is not None and beyond(bare)):
            left_out.append(name)
        else:
            unexpected.append(f"{short(name)} {arrays[name].shape}")
    return left_out, unexpected


def _beyond(naming: Naming, table: Table, expected: Shapes) -> Callable[[str], bool]:
    """Whether a name belongs to a later stage than the model has, or to what follows the last one.

    Only the stage counts: more blocks in a stage than the model has are those of a larger model.
    """
    last: dict[Rule, int] = {}
    for path in expected:
        new = any(re.match(pattern, path) for pattern in table.new)
        if not new and (found := naming.rule(path)) is not None:
            last[found[0]] = max(last.get(found[0], -1), found[2].get("i", 0))

    def answer(name: str) -> bool:
        for rule in naming.rules:
            for template in rule.templates[1]:
                if (numbers := template.parse(name)) is not None:
                    return numbers.get("i", 0) > last.get(rule, -1)
        return False

    return answer


def _value(arrays: Mapping[str, np.ndarray], rule: Rule, names: Sequence[str], *, dtype: Any) -> np.ndarray:
    value = rule.transform.ours([arrays[name] for name in names])
    with np.errstate(over="ignore"):  # an infinity is found below, by name
        return np.array(value, dtype=dtype, order="C")


def _check_finite(values: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]], source: str) -> None:
    def finite(value: np.ndarray) -> bool:
        wide = value.astype(np.float32) if value.dtype in (np.float16, ml_dtypes.bfloat16) else value
        return bool(np.isfinite(wide).all())

    bad = [name for path, value in values.items() if not finite(value) for name in names[path]]
    if bad:
        raise WeightsError(
            f"{source}: NaN or infinite values in {_some(bad)}. The training that wrote them diverged, or the file is "
            "damaged: use an earlier one."
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(short(name) for name in listed[:8]) + more
