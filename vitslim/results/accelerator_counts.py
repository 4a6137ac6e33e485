"""Counts of the work that an accelerator does for each image: from its functional half to its performance half."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpattenCounts:
    """Work of SpAtten; int64 (images, layers, heads). A pruned or absent head has zeros."""

    queries: Ints
    keys: Ints
    values: Ints
    """V rows that each query multiplies."""
    value_rows: Ints
    """V rows that at least one query reads."""
    refetched: Ints
    """Queries that read the low bits of Q and K."""
    tokens_after: Ints
    """Tokens that are left after each layer; int64 (images, layers)."""

    @property
    def heads(self) -> Ints:
        """Heads that a layer computes; int64 (images, layers)."""
        return np.asarray((self.queries > 0).sum(axis=2), np.int64)


@dataclass(frozen=True)
class FactCounts:
    """Work of FACT; int64 (images, layers)."""

    entries: Ints
    """Entries of the attention matrix that are computed, over all heads."""
    columns: Ints
    """Keys whose K and V are generated, over all heads."""
    rows: Ints
    """Queries whose Q is generated, over all heads."""
    high_tokens: Ints
    """Tokens with an INT8 MLP."""


Counts = SpattenCounts | FactCounts


def joined(parts: list[Counts]) -> Counts:
    """Return the counts of several batches of images as one; all parts are of one accelerator."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(kind)))
