"""Grouping of a workload's GEMMs: identical ones are one row of an estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vitslim.workload import Operator, Workload
from vitslim.workload.operators import MATMUL_KINDS


@dataclass(frozen=True)
class Group:
    """`count` identical GEMMs."""

    role: str
    op: str
    m: int
    n: int
    k: int
    sparsity: str
    count: int

    @property
    def name(self) -> str:
        """Role, sizes and sparsity, such as `attn.qkv 197x576x192 2:4`."""
        return f"{self.role} {self.m}x{self.n}x{self.k}{' ' + self.sparsity if self.sparsity else ''}"


def grouped(operators: Sequence[Operator]) -> list[Group]:
    """Group GEMMs by role, sizes and sparsity, in the order of their first occurrence."""
    counts: Counter[tuple[str, str, int, int, int, str]] = Counter()
    for o in operators:
        if o.op in MATMUL_KINDS:
            counts[o.role, o.op, o.m, o.n, o.k, o.sparsity] += o.count
    return [Group(*key, count=count) for key, count in counts.items()]


def not_modeled(workload: Workload, modeled: Collection[str]) -> str:
    """List operator kinds without cost in an estimate, with counts, and unknown operators, with shares of the bytes."""
    free = Counter(o.op for o in workload.operators if o.op not in (*MATMUL_KINDS, *modeled))
    return ", ".join([f"{op} ({count})" for op, count in sorted(free.items())] + unknown_words(workload))


def unknown_words(workload: Workload) -> list[str]:
    """Return `unknown Det (2, 3.1 % of the bytes)` for each unknown operator type."""
    shares = workload.unknown_shares()
    return [f"unknown {name} ({count}, {100 * shares.get(name, 0.0):.1f} % of the bytes)"
            for name, count in workload.unknown.items()]  # fmt: skip
