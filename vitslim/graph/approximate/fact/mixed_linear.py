"""Linear layers on the bit-composable array of FACT: INT8, or INT4 for tokens that are not important."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.approximate.bit_planes import (
    INT8_MAX,
    straight_through,
    symmetric_scale,
    to_symmetric,
    upper_magnitude,
)

LOW = 4


def mixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, high: Tensor | None, int4_weights: bool) -> Tensor:
    """Return a linear layer with INT8 operands, and INT4 ones in the rows that are not `high`.

    INT4 is the upper four bits of an INT8 number in sign and magnitude.

    x: (B, n, C), one scale per token. weight: (out, C), one scale per output channel. high: bool (B, N) of which the
    first n count; None: all rows are INT8. int4_weights: whether rows with INT4 activations also have INT4 weights.
    FACT publishes no granularity of its scales; these are the usual ones. Gradients pass straight through rounding.
    """
    x_scale, w_scale = symmetric_scale(x, INT8_MAX, (-1,)), symmetric_scale(weight, INT8_MAX, (1,))
    rows, columns = to_symmetric(x, x_scale, INT8_MAX), to_symmetric(weight, w_scale, INT8_MAX)
    w = straight_through(weight, w_scale * columns)
    if high is None:
        return functional.linear(straight_through(x, x_scale * rows), w, bias)
    is_high = high[:, : x.shape[1], None]
    mixed = torch.where(is_high, rows, upper_magnitude(rows, LOW))
    found = functional.linear(straight_through(x, x_scale * mixed), w, bias)
    if not int4_weights:
        return found
    low = straight_through(weight, w_scale * upper_magnitude(columns, LOW))
    return torch.where(is_high, found, functional.linear(straight_through(x, x_scale * mixed), low, bias))
