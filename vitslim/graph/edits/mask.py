"""Fixed sparsity masks on weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitslim.graph.edits.edit import Edit
from vitslim.graph.model_graph import ModelGraph


@dataclass(frozen=True)
class Mask(Edit):
    """A fixed sparsity mask on some weights; the masks are saved with the weights."""

    pattern: str
    """`2:4` or `unstructured:0.5`."""
    parameters: tuple[str, ...]

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Record the edit only: masks are loaded with the weights."""
        new = graph.copy()
        new.edits = (*new.edits, self)
        return new

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Mask:
        """Rebuild the edit."""
        return cls(fields["pattern"], tuple(fields["parameters"]))


def mask_weights(graph: ModelGraph, pattern: str, masks: Mapping[str, Tensor]) -> ModelGraph:
    """Return a new graph in which the weights outside these masks are zero.

    masks: bool, by parameter name and of the parameter's shape; True keeps a weight.
    """
    new = graph.copy()
    weights = new.parameters()
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
    return replace(new, masks={**new.masks, **masks}, edits=(*new.edits, Mask(pattern, tuple(masks))))
