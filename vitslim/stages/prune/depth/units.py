"""Which blocks or branches can go, and how far two models' outputs are apart. No model, no data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

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
    """Name of each that can go, with the names of its branches; in graph order."""
    stuck: dict[str, str]
    """Name of each that cannot go, with the reason."""


def find_units(branches: Iterable[NamedBranch], unit: Unit) -> Units:
    """Branches by themselves, or all branches of a block together; a block can go when each of its branches can."""
    members: dict[str, list[NamedBranch]] = {}
    for branch in branches:
        members.setdefault(branch.block if unit == "block" else branch.name, []).append(branch)
    stuck = {name: reason for name, found in members.items() if (reason := _reason(name, found))}
    removable = {name: tuple(b.name for b in found) for name, found in members.items() if name not in stuck}
    return Units(removable, stuck)


def _reason(name: str, branches: list[NamedBranch]) -> str:
    reasons = (b.obstacle if b.name == name else f"{b.name}: {b.obstacle}" for b in branches if b.obstacle)
    return next(reasons, "")


def mean_kl(reference: Tensor, logits: Tensor) -> float:
    """Mean over images of KL(softmax(reference) || softmax(logits)), in nats, in double precision; both (n, classes).

    Zero when both predict the same, never negative but for rounding.
    """
    p, q = (log_softmax(x.double(), dim=1) for x in (reference, logits))
    return float(kl_div(q, p, reduction="batchmean", log_target=True))
