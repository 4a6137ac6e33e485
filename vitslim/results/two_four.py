"""Use of 2:4 weights by a backend, layer by layer, as far as its runtime tells."""

from __future__ import annotations

from typing import Literal

from vitslim.results.value import Value

Status = Literal["selected", "eligible, not selected", "not eligible"]


class TwoFourLayer(Value):
    """A layer with 2:4 weights on one backend."""

    layer: str
    status: Status
    """`selected`: a sparse kernel computes it."""
    reason: str = ""
    """Reason for `not eligible`."""


class TwoFourUse(Value):
    """Kernels that a backend chose for the layers with 2:4 weights of one file."""

    backend: str
    layers: tuple[TwoFourLayer, ...] = ()
    """Empty for a runtime that does not tell."""
    note: str = ""
    """Source of the information, or the reason for its absence."""
