"""The exported graph of a model with its source and its edits: input and output of every stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from vitslim.tasks import Task

if TYPE_CHECKING:
    from vitslim.graph.axes import AxisTable
    from vitslim.graph.edits import Edit


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image into the model's input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    """`bilinear`, `bicubic`, ..."""
    crop_pct: float
    crop_mode: str = "center"
    """`center`: resize the shorter side and crop; `squash`: resize both sides; `border`: pad to the aspect ratio."""


@dataclass(frozen=True)
class ModelSource:
    """Everything that is needed to rebuild the dense model, without its weights."""

    timm: str
    kwargs: dict[str, Any]
    image: tuple[int, int, int]
    """Channels, height, width of one input."""
    classes: int
    """Number of classes; 0 for a model without a classifier."""
    preprocessing: Preprocessing
    weights: tuple[str, ...] = ()
    """How the checkpoint was read and made to fit the model, one sentence each."""
    class_rule: str = ""
    """The rule that ties class names to outputs; empty before the images are known, and for images without labels."""
    task: Task = "classify"
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each output to its shape for one image."""

    @property
    def has_maps(self) -> bool:
        """Whether the outputs have positions: maps of a backbone, or tokens that are not pooled."""
        return any(len(shape) != 1 for shape in self.outputs.values())


@dataclass
class ModelGraph:
    """A model as its exported graph. A stage returns a new one and never changes the one that it received."""

    module: GraphModule
    """Maps a float32 tensor (batch, C, H, W) to logits (batch, classes), an embedding (batch, features), or a
    tuple of maps; dynamic batch."""
    source: ModelSource
    edits: tuple[Edit, ...] = ()
    """The changes that turned the source model into `module`, in order."""
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parameter name to bool tensor of its shape: True keeps a weight. Weights are already multiplied by it; training
    multiplies gradients and weights by it at every step."""

    @cached_property
    def axes(self) -> AxisTable:
        """The axes of the graph, inferred on first use."""
        from vitslim.graph.axes import infer_axes

        return infer_axes(self.module, self.source.image)

    def forget_axes(self) -> None:
        """Discard the inferred axes; call it after changing the graph in place."""
        self.__dict__.pop("axes", None)

    def copy(self) -> ModelGraph:
        """Return a deep copy that shares no tensor with this graph; its axes are inferred anew."""
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return replace(self, module=copy.deepcopy(self.module), masks=masks)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trainable tensors by name."""
        return dict(self.module.named_parameters())
