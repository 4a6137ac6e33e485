"""Dimensions of every block before and after structural pruning, and the share of the cost that each block has."""

from __future__ import annotations

from typing import Literal

from vitslim.results.value import Value


class BlockWidths(Value):
    """One block, or all blocks for an axis that they share."""

    block: str
    """`blocks.3`, or `all blocks`."""
    widths: dict[str, tuple[int, int]]
    """Kind of an axis (embed, heads, qk, v, mlp) to its length before and after; 0 after in a removed branch."""
    share_before: float
    """Cost of the block over that of the dense model, before pruning."""
    share_after: float
    """Cost of the block after pruning, over that of the dense model."""


class PrunedWidths(Value):
    """The dimensions that a stage pruned."""

    cost: str
    """Name of the cost: latency, MACs or parameters."""
    source: Literal["measured", "simulated", "counted"]
    """Source of the cost; latencies are estimates by a latency table that was measured or simulated."""
    table: str
    """The latency table: backend, batch and precision; empty for a counted cost."""
    blocks: tuple[BlockWidths, ...]
