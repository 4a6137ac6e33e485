"""How much each output of a layer moves the logits, position by position.

What a layer computes for the class token of the last block decides everything, for the patches beside it nothing.
Methods that keep the outputs of a layer, as GPTQ, SparseGPT and ALPS do, keep those first that matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.nodes import is_op
from vitslim.training.taps import with_taps

BATCH = 8
"""Images of one backward pass, which needs the memory of all layers at once."""


class Sensitivity:
    """Runs a float graph on images, forwards and backwards, and tells which outputs of each layer matter."""

    def __init__(self, module: GraphModule, layers: Sequence[tuple[str, Node]], seed: int) -> None:
        """`layers`: pairs of a weight and a node that multiplies with it."""
        self._names, nodes = zip(*layers, strict=True)
        self._channels = [-1 if is_op(node, torch.ops.aten.linear.default) else 1 for node in nodes]
        self._tapped = with_taps(module, nodes)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For each layer its weight, and of the gradients g of a random combination of the logits at its outputs:
        their norms, float64 (positions,), in the order of the layer's rows, and g / sqrt|g|, float (positions, out):
        positions count in the gram matrix of these as they do in `row_weights`.

        Raises StageError where a gradient is no finite number.
        """
        _, gradients = random_gradients(self._tapped, images, self._generator)
        for name, gradient, channels in zip(self._names, gradients, self._channels, strict=True):
            rows = gradient.movedim(channels, -1).flatten(end_dim=-2)
            # Without norms gradients can be so large that their squares overflow.
            norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
            if not bool(norms.isfinite().all()):
                hint = "`rounding: nearest` and `score: magnitude` ask for no gradients"
                raise StageError(f"the gradient at '{name}' is no finite number", hint)
            scaled = rows / norms.sqrt().clamp(min=torch.finfo(rows.dtype).tiny).to(rows.dtype)[:, None]
            yield name, norms, scaled


def random_gradients(
    tapped: GraphModule, images: Tensor, generator: torch.Generator
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the nodes of a tapped model compute, and the gradients there of a random combination of the logits.

    Both detached, of the same shapes. What is the same for every image has gradients of zero.
    """
    with torch.enable_grad():
        logits, shown = tapped(images.detach().clone().requires_grad_())
        direction = torch.randn(logits.shape, generator=generator).to(logits.device)
        moving = [x for x in shown if x.requires_grad]
        found = iter(torch.autograd.grad((logits * direction).sum(), moving, materialize_grads=True))
    gradients = tuple(next(found) if x.requires_grad else torch.zeros_like(x) for x in shown)
    return tuple(x.detach() for x in shown), gradients


def row_weights(norms: Tensor) -> Tensor:
    """Weights of mean 1, float32 (positions,), from norms float64 (positions,); equal where nothing moves."""
    mean = norms.mean()
    return (norms / mean if mean > 0 else torch.ones_like(norms)).float()
