"""The value that every stage takes and gives back: the exported graph, where it came from, and what was done to it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

if TYPE_CHECKING:
    from vitslim.graph.axes import AxisTable
    from vitslim.graph.edits import Edit


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    """`bilinear`, `bicubic`, ..."""
    crop_pct: float


@dataclass(frozen=True)
class ModelSource:
    """What is needed to build the dense model again, without its weights."""

    timm: str
    kwargs: dict[str, Any]
    image: tuple[int, int, int]
    """Channels, height, width of one input."""
    classes: int
    preprocessing: Preprocessing


@dataclass
class ModelGraph:
    """A model as its exported graph. A stage takes one and returns another; it never changes the one it got."""

    module: GraphModule
    """Takes a float32 tensor (batch, C, H, W) and gives logits (batch, classes); dynamic batch."""
    source: ModelSource
    edits: tuple[Edit, ...] = ()
    """What made `module` from the source model, in order."""
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parameter name to boolean tensor of its shape: True where a weight stays. Weights are already multiplied by it;
    training multiplies gradients and weights by it at every step."""

    @cached_property
    def axes(self) -> AxisTable:
        """Axis inference over the graph, done once for each graph."""
        from vitslim.graph.axes import infer_axes

        return infer_axes(self.module, self.source.image)

    def forget_axes(self) -> None:
        """Call it after changing the graph in place: the axes are inferred afresh when they are asked for again."""
        self.__dict__.pop("axes", None)

    def copy(self) -> ModelGraph:
        """A deep copy that shares no tensor with this one and infers its axes afresh."""
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return replace(self, module=copy.deepcopy(self.module), masks=masks)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trainable tensors by name."""
        return dict(self.module.named_parameters())
