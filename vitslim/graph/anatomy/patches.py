"""Convolutions over non-overlapping patches, which are matmuls of rearranged images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vitslim.graph.nodes import argument, is_op

aten = torch.ops.aten


def is_patch_convolution(layer: Node, weight: Tensor) -> bool:
    """Whether a layer is a convolution over non-overlapping patches without gaps; weight (out, in, height, width)."""
    if not is_op(layer, aten.conv2d.default) or argument(layer, 6, "groups", 1) != 1:
        return False
    stride = _pair(argument(layer, 3, "stride", 1))
    padding, dilation = _pair(argument(layer, 4, "padding", 0)), _pair(argument(layer, 5, "dilation", 1))
    return tuple(weight.shape[2:]) == stride and padding == (0, 0) and dilation == (1, 1)


def has_padding(layer: Node) -> bool:
    """Whether a layer is a convolution that pads its input with zeros."""
    if is_op(layer, aten.linear.default):
        return False
    padding = argument(layer, 4, "padding", 0)
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _pair(value: Any) -> tuple[Any, ...]:
    """Return a value for each direction; `padding` may also be a string."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(listed * 2 if len(listed) == 1 else listed)
