"""Differences between two recipes, with all default values filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from vitslim.recipe.document.check import join
from vitslim.recipe.lock import recipe_document
from vitslim.recipe.schema import Recipe

Values = Mapping[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True)
class KeyDifference:
    """A key whose values differ between two recipes, or that only one of them has."""

    key: str
    """Dotted path; the position of a stage is that in the first recipe, or in the second if only that has the stage."""
    values: tuple[Any, ...]
    """Value in the first recipe; empty if it has no such key."""
    others: tuple[Any, ...]
    """Value in the second recipe; empty if it has no such key."""


def differences(first: Recipe, second: Recipe) -> tuple[KeyDifference, ...]:
    """Return the keys that differ, in the order of the recipes. Stages are aligned by kind."""
    documents = recipe_document(first), recipe_document(second)
    stages = [document.pop("stages") for document in documents]
    rows = [_compared(*(dict(_flat(document, "")) for document in documents))]
    kinds = [[next(iter(entry)) for entry in entries] for entries in stages]
    for _, start, end, other_start, other_end in SequenceMatcher(None, kinds[0], kinds[1], False).get_opcodes():
        pairs = zip_longest(range(start, end), range(other_start, other_end))
        rows += [_compared(*_stage_values(stages, kinds, position, other)) for position, other in pairs]
    return tuple(difference for row in rows for difference in row)


def _stage_values(
    stages: list[list[Any]], kinds: list[list[str]], position: int | None, other: int | None
) -> tuple[Values, Values]:
    """Return the values of a stage of each recipe; stages of different kinds have no key in common."""
    shown = position if position is not None else other
    is_same = position is not None and other is not None and kinds[0][position] == kinds[1][other]
    first = {} if position is None else dict(_flat(stages[0][position], f"stages.{shown}"))
    second = {} if other is None else dict(_flat(stages[1][other], f"stages.{shown if is_same else other}"))
    return first, second


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; a list and an empty mapping are values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, join(where, key))
    else:
        yield where, value


def _compared(first: Values, second: Values) -> list[KeyDifference]:
    found = []
    for key in dict.fromkeys((*first, *second)):
        one, other = ((values[key],) if key in values else () for values in (first, second))
        if one != other:
            found.append(KeyDifference(key, one, other))
    return found
