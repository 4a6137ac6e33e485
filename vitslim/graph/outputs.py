"""Outputs of a model: one tensor, or the maps of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from vitslim.tasks import Task

Outputs = Tensor | Sequence[Tensor]
"""One tensor (b, ...), or several."""


def output_list(outputs: Outputs) -> tuple[Tensor, ...]:
    """Return the outputs of a model as a tuple, also for a model with one output."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def joined(outputs: Outputs) -> Tensor:
    """Return all outputs of a model as one tensor (b, k), whose columns are the values of one output after the other.

    Logits and embeddings (b, k) are returned unchanged.
    """
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        return outputs
    return torch.cat([one.flatten(start_dim=1) for one in output_list(outputs)], dim=1)


def parts(values: Tensor, outputs: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the columns of each output in a tensor (b, k) of `joined`, (b, size) by name.

    outputs: name to shape for one image. Without names all columns are one part, with an empty name.
    """
    if not outputs:
        return {"": values}
    split = torch.split(values, [prod(shape) for shape in outputs.values()], dim=1)
    return dict(zip(outputs, split, strict=True))


def name_outputs(task: Task, outputs: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Return a name for each output, with its shape for one image: `logits`, `features`, or `features_0`, ..."""
    shapes = [tuple(one.shape[1:]) for one in outputs]
    if task != "features":
        return {"logits": shapes[0]}
    if len(shapes) == 1:
        return {"features": shapes[0]}
    return {f"features_{number}": shape for number, shape in enumerate(shapes)}
