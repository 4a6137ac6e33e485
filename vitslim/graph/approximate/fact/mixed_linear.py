"""Linear layers on the bit-composable array of FACT: INT8, or INT4 for tokens that are not important."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.approximate.bit_planes import straight_through, symmetric_scale, to_symmetric, upper_plane

BITS, LOW = 8, 4


def mixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, high: Tensor | None, int4_weights: bool) -> Tensor:
    """Return a linear layer whose operands are INT8, and INT4 (the upper four bits) in the rows that are not `high`.

    x: (B, n, C), one scale per token. weight: (out, C), one scale per output channel. high: bool (B, N) of which the
    first n count; None: all rows are INT8. int4_weights: whether rows with INT4 activations also have INT4 weights.
    FACT publishes no granularity of its scales; these are the usual ones. Gradients pass straight through rounding.
    """
    x_scale, w_scale = symmetric_scale(x, BITS, (-1,)), symmetric_scale(weight, BITS, (1,))
    rows, columns = to_symmetric(x, x_scale, BITS), to_symmetric(weight, w_scale, BITS)
    w = straight_through(weight, w_scale * columns)
    if high is None:
        return functional.linear(straight_through(x, x_scale * rows), w, bias)
    is_high = high[:, : x.shape[1], None]
    mixed = torch.where(is_high, rows, upper_plane(rows, LOW))
    found = functional.linear(straight_through(x, x_scale * mixed), w, bias)
    if not int4_weights:
        return found
    low = straight_through(weight, w_scale * upper_plane(columns, LOW))
    return torch.where(is_high, found, functional.linear(straight_through(x, x_scale * mixed), low, bias))
