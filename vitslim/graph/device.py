"""Moving a graph between devices."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule


def move(module: nn.Module, device: torch.device) -> None:
    """Bring a module to a device in place. Parameters stay the objects that they are; an exported graph also names the
    device of the constants that it makes, and that name follows."""
    module.to(device)
    if isinstance(module, GraphModule):
        name_device(module, device)


def name_device(module: GraphModule, device: torch.device) -> None:
    """Let every constant that a graph makes be made on a device."""
    for node in module.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": device}
    module.recompile()
