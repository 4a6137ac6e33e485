"""Moving a graph between devices."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule


def move(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device in place. Parameters remain the same objects; the device of constants that an exported
    graph creates is changed too."""
    module.to(device)
    for part in module.modules():
        if isinstance(part, GraphModule):
            set_constant_device(part, device)


def set_constant_device(module: GraphModule, device: torch.device) -> None:
    """Set the device of all constants that a graph creates."""
    for node in module.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": device}
    module.recompile()
