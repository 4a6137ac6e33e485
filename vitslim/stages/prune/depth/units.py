"""Blocks or branches that can be removed, and the divergence of two models' outputs. No model, no data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

Unit = Literal["block", "branch"]


class NamedBranch(Protocol):
    """A residual branch: of a graph or of a sketch."""

    @property
    def name(self) -> str: ...
    @property
    def block(self) -> str: ...
    @property
    def obstacle(self) -> str: ...


@dataclass(frozen=True)
class Units:
    """The blocks or branches of one model."""

    removable: dict[str, tuple[str, ...]]
    """Name of each unit that can be removed, with the names of its branches, in graph order."""
    obstacles: dict[str, str]
    """Name of each unit that cannot be removed, with the reason."""


def find_units(branches: Iterable[NamedBranch], unit: Unit) -> Units:
    """Return the single branches, or the blocks. A block can be removed when each of its branches can."""
    members: dict[str, list[NamedBranch]] = {}
    for branch in branches:
        members.setdefault(branch.block if unit == "block" else branch.name, []).append(branch)
    obstacles = {name: reason for name, found in members.items() if (reason := _reason(name, found))}
    removable = {name: tuple(b.name for b in found) for name, found in members.items() if name not in obstacles}
    return Units(removable, obstacles)


def _reason(name: str, branches: list[NamedBranch]) -> str:
    reasons = (b.obstacle if b.name == name else f"{b.name}: {b.obstacle}" for b in branches if b.obstacle)
    return next(reasons, "")
