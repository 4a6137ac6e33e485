"""One matmul of the sketch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from vitslim.graph.sketch.size import Size

SCORES = ".attention.qk"
"""End of the name of the matmul of queries and keys; the one of probabilities and values ends in `VALUES`."""
VALUES = ".attention.v"


@dataclass(frozen=True)
class Matmul:
    """One matmul: `count` times (rows x reduce) by (reduce x columns), for one image. A convolution counts as one."""

    name: str
    count: Size
    rows: Size
    reduce: Size
    columns: Size
    weight: str = ""
    """Name of the weight; empty for a matmul of two activations."""
    block: str = ""
    role: str = "other"
    """qkv, proj, fc1, fc2, head, patch_embed, attention, squeeze or other."""
    branches: frozenset[str] = frozenset()
    """Names of the residual branches around it."""
    convolution: bool = False
    reads_image: bool = False
    reads_pixels: bool = False
    """Whether it can read pixels instead of the normalized image."""
    constant: bool = False
    """Whether it does not depend on the image, such as the layers that compute a relative position bias."""

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
        """Count, rows, reduce and columns for given axis lengths."""
        return self.count.value(sizes), self.rows.value(sizes), self.reduce.value(sizes), self.columns.value(sizes)

    def macs(self, sizes: Mapping[str, int]) -> int:
        """Multiply-accumulates for one image."""
        return prod(self.shape(sizes))
