"""Rules that map array names of another implementation to our parameter paths, and back.

A rule has a template on each side: `features.{i*2+1}.{j}.norm1.weight` and `stages/{i}/{j}/norm1/scale` name the same
array. Paths have the form of `jax.tree_util.keystr(path, simple=True, separator="/")`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from histojax.models.naming.transforms import DENSE, SAME, Transform

_FIELD = re.compile(r"\{(\w+)(?:\*(\d+))?(?:([+-]\d+))?\}")


@dataclass(frozen=True)
class Template:
    """A name with numbered fields: `{i}`, or `{i*2+1}` where the other implementation counts differently."""

    text: str

    @cached_property
    def _pattern_and_fields(self) -> tuple[re.Pattern[str], list[tuple[str, int, int]]]:
        fields = [(m[1], int(m[2] or 1), int(m[3] or 0)) for m in _FIELD.finditer(self.text)]
        literals = [re.escape(part) for part in _FIELD.sub("\0", self.text).split("\0")]
        return re.compile(r"(\d{1,6})".join(literals)), fields

    def parse(self, name: str) -> dict[str, int] | None:
        """Return the value of each field in `name`, or None if the name does not match."""
        pattern, fields = self._pattern_and_fields
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
        """Return the name with these field values."""
        return _FIELD.sub(lambda m: str(numbers[m[1]] * int(m[2] or 1) + int(m[3] or 0)), self.text)


@dataclass(frozen=True)
class Rule:
    """One of our arrays and where a file stores it.

    Attributes:
      path: template of our path.
      names: template of the name in the file, or several templates whose arrays are joined.
      transform: conversion between the two layouts.
    """

    path: str
    names: str | tuple[str, ...]
    transform: Transform = SAME

    @cached_property
    def path_template(self) -> Template:
        """Template of our path."""
        return Template(self.path)

    @cached_property
    def name_templates(self) -> tuple[Template, ...]:
        """Templates of the names in the file."""
        names = (self.names,) if isinstance(self.names, str) else self.names
        return tuple(map(Template, names))


@dataclass(frozen=True)
class Naming:
    """The array names of one implementation.

    Attributes:
      title: shown to the user and accepted by `--naming`.
      rules: one per array.
      classifier: prefixes of the classifier's names in files.
      ignored: regular expressions for names that are not parameters, such as indices and masks.
      derived: computes arrays that the implementation stores although they follow from the others; called on export
        with the exported arrays.
    """

    title: str
    rules: tuple[Rule, ...]
    classifier: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    derived: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None

    def rule(self, path: str) -> tuple[Rule, tuple[str, ...], Mapping[str, int]] | None:
        """Return the rule, file names and field values for one of our paths, or None if no rule covers it."""
        for rule in self.rules:
            if (numbers := rule.path_template.parse(path)) is not None:
                return rule, tuple(name.format(numbers) for name in rule.name_templates), numbers
        return None


def batch_norm(path: str, name: str) -> tuple[Rule, ...]:
    """Return the rules for the four arrays of a batch norm."""
    return (
        Rule(f"{path}/scale", f"{name}.weight"),
        Rule(f"{path}/bias", f"{name}.bias"),
        Rule(f"{path}/mean", f"{name}.running_mean"),
        Rule(f"{path}/var", f"{name}.running_var"),
    )


def layer_norm(path: str, name: str) -> tuple[Rule, ...]:
    """Return the rules for scale and bias of a layer norm."""
    return Rule(f"{path}/scale", f"{name}.weight"), Rule(f"{path}/bias", f"{name}.bias")


def dense(path: str, name: str) -> tuple[Rule, ...]:
    """Return the rules for kernel and bias of a dense layer."""
    return Rule(f"{path}/kernel", f"{name}.weight", DENSE), Rule(f"{path}/bias", f"{name}.bias")
