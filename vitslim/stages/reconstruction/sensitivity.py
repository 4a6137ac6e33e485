"""Sensitivity of the outputs of a model to each output of a layer, position by position.

In the last block, for example, only the class token affects the outputs. Layer-wise solvers weight the output errors of
a layer by these sensitivities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.nodes import argument, is_op
from vitslim.graph.outputs import joined
from vitslim.training.engine.collectives import whole_batch
from vitslim.training.forms.taps import with_taps
from vitslim.training.tasks import TaskFunctions
from vitslim.training.tasks.classification import Classification

BATCH = 8
"""Images of one backward pass, which holds the activations of all layers."""


class LayerGradients(NamedTuple):
    """The gradients at the outputs of a layer."""

    name: str
    """The name of its weight."""
    inputs: Tensor
    """Its input activation."""
    norms: Tensor
    """Norm of each row of `gradients`: float64 (positions,)."""
    gradients: Tensor
    """Float (positions, out), in the order of the layer's rows."""


class Sensitivity:
    """Runs a float graph on images, forward and backward, and returns the gradients at the outputs of its layers."""

    def __init__(
        self,
        module: GraphModule,
        layers: Sequence[tuple[str, Node]],
        seed: int,
        draws: int = 0,
        task: TaskFunctions | None = None,
    ) -> None:
        """Tap the layers of a graph.

        layers: pairs of a weight's name and the node that multiplies with it. draws: number of answers sampled from the
        model for each image, whose log-likelihoods are differentiated; 0: differentiate one random combination of the
        outputs. task: default classification, whose answers are classes.
        """
        self._names, nodes = zip(*layers, strict=True)
        self._channels = [-1 if is_op(node, torch.ops.aten.linear.default) else 1 for node in nodes]
        self._tapped = with_taps(module, [*nodes, *(argument(node, 0) for node in nodes)])
        self._generator, self._draws = torch.Generator().manual_seed(seed), draws
        self._task = task or Classification()

    def __call__(self, images: Tensor, whole: int | None = None) -> Iterator[LayerGradients]:
        """Yield the gradients of each draw and layer.

        whole: number of images of the batch that the ranks share, of which `images` are those of this rank. Raises
        StageError for gradients, or outputs of sampled answers, that are not finite.
        """
        count = len(self._names)
        if self._draws == 0:
            values, gradients = random_gradients(self._tapped, images, self._generator, count, whole)
            yield from self._by_layer(values[count:], gradients)
        else:
            drawn = sampled_gradients(self._tapped, images, self._generator, self._draws, self._task, count, whole)
            for values, gradients in drawn:
                yield from self._by_layer(values[count:], gradients)

    def _by_layer(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Iterator[LayerGradients]:
        for name, x, gradient, channels in zip(self._names, inputs, gradients, self._channels, strict=True):
            rows = gradient.movedim(channels, -1).flatten(end_dim=-2)
            # In models without normalization the squares of gradients can overflow float32.
            norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
            if not bool(norms.isfinite().all()):
                hint = "use `rounding: nearest` or `score: magnitude`, which need no gradients"
                raise StageError(f"the gradient at '{name}' is not finite", hint)
            yield LayerGradients(name, x, norms, rows)


def scaled_gradients(rows: Tensor, norms: Tensor) -> Tensor:
    """Return the output gradients g, float (positions, out), each divided by the square root of its norm.

    In their gram matrix each position has the same weight as in `row_weights`.
    """
    return rows / norms.sqrt().clamp(min=torch.finfo(rows.dtype).tiny).to(rows.dtype)[:, None]


def random_gradients(
    tapped: GraphModule,
    images: Tensor,
    generator: torch.Generator,
    count: int | None = None,
    whole: int | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the values of the tapped nodes, and the gradients of a random combination of the model's outputs there.

    count: number of nodes to differentiate at, the first of them; default all. Both are detached and of the same
    shapes. Values that do not depend on the image have gradients of zero. whole: as in `Sensitivity`; the combination
    does not depend on the number of ranks.
    """
    with torch.enable_grad():
        found, values = tapped(images.detach().clone().requires_grad_())
        outputs = whole_batch(joined(found), len(images) if whole is None else whole)
        direction = torch.randn(outputs.shape, generator=generator).to(outputs.device)
        scalar = (outputs * direction).sum()
    return tuple(x.detach() for x in values), _gradients(scalar, values[:count], last=True)


def sampled_gradients(
    tapped: GraphModule,
    images: Tensor,
    generator: torch.Generator,
    draws: int,
    task: TaskFunctions,
    count: int | None = None,
    whole: int | None = None,
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Yield for each draw the values of the tapped nodes, and the gradients there of the log-likelihood of a sampled
    answer.

    Answers are sampled for each image by the task; the model runs on the CPU. The expectation of the outer products of
    the gradients is the Fisher information (Martens and Grosse, ICML 2015, section 2.2). `count` and `whole`
    as in `random_gradients`. Raises StageError for outputs that are not finite.
    """
    with torch.enable_grad():
        found, values = tapped(images.detach().clone().requires_grad_())
        outputs = whole_batch(joined(found), len(images) if whole is None else whole)
        scalars = task.log_likelihoods(outputs, draws, generator)
    detached = tuple(x.detach() for x in values)
    for scalar in scalars:
        yield detached, _gradients(scalar, values[:count], last=False)


def _gradients(scalar: Tensor, outputs: Sequence[Tensor], *, last: bool) -> tuple[Tensor, ...]:
    """Return the gradients of a scalar at node outputs. The graph is freed when it is the `last` scalar."""
    differentiable = [x for x in outputs if x.requires_grad]
    found = iter(torch.autograd.grad(scalar, differentiable, retain_graph=not last, materialize_grads=True))
    return tuple(next(found) if x.requires_grad else torch.zeros_like(x) for x in outputs)


def row_weights(norms: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return weights of mean 1, float32 (positions,), from norms, float64 (positions,); all 1 for zero norms.

    mean: that of the norms of all ranks; default: of these.
    """
    mean = norms.mean() if mean is None else mean
    return (norms / mean if mean > 0 else torch.ones_like(norms)).float()
