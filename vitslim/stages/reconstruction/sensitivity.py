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
TEMPERATURE = 4.0
"""At which a model draws classes: at 1 hardly any but the most likely one, and others have something to say as well.

2:4 of DeiT-Tiny by K-FAC from 256 images of five classes, judged on five others, four draws an image: divergence of the
outputs (KL) 0.581 at 1, 0.525 at 4, 0.539 at 10; by random combinations of the logits 0.544, by one of them 0.579."""


class Sensitivity:
    """Runs a float graph on images, forwards and backwards, and tells which outputs of each layer matter."""

    def __init__(self, module: GraphModule, layers: Sequence[tuple[str, Node]], seed: int, draws: int = 0) -> None:
        """`layers`: pairs of a weight and a node that multiplies with it. `draws`: how many classes the model draws for
        an image, by whose probability it is asked what matters; 0: by one random combination of the logits."""
        self._names, nodes = zip(*layers, strict=True)
        self._channels = [-1 if is_op(node, torch.ops.aten.linear.default) else 1 for node in nodes]
        self._tapped = with_taps(module, nodes)
        self._generator, self._draws = torch.Generator().manual_seed(seed), draws

    def __call__(self, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For each draw and layer its weight, and of the gradients g of what is drawn at its outputs: their norms,
        float64 (positions,), in the order of the layer's rows, and g / sqrt|g|, float (positions, out): positions count
        in the gram matrix of these as they do in `row_weights`.

        Raises StageError where a gradient, or a logit that classes are drawn by, is no finite number.
        """
        if self._draws == 0:
            yield from self._by_layer(random_gradients(self._tapped, images, self._generator)[1])
        else:
            for gradients in class_gradients(self._tapped, images, self._generator, self._draws):
                yield from self._by_layer(gradients)

    def _by_layer(self, gradients: Sequence[Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
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
        scalar = (logits * direction).sum()
    return tuple(x.detach() for x in shown), _gradients(scalar, shown, last=True)


def class_gradients(
    tapped: GraphModule, images: Tensor, generator: torch.Generator, draws: int
) -> Iterator[tuple[Tensor, ...]]:
    """For each draw the gradients, at the nodes of a tapped model on the CPU, of the logarithm of the probability of a
    class, which the model draws for each image at TEMPERATURE. Their outer products are in the mean the Fisher
    information (Martens and Grosse, ICML 2015, section 2.2). Raises StageError where a logit is no finite number.
    """
    with torch.enable_grad():
        logits, shown = tapped(images.detach().clone().requires_grad_())
        likely = torch.log_softmax(logits / TEMPERATURE, dim=1)
        if not bool(likely.isfinite().all()):
            raise StageError("the logits of calibration images are no finite numbers", "check the images and weights")
        classes = torch.multinomial(likely.detach().exp(), draws, replacement=True, generator=generator)
        scalars = likely.gather(1, classes).sum(dim=0)
    for scalar in scalars:
        yield _gradients(scalar, shown, last=False)


def _gradients(scalar: Tensor, shown: Sequence[Tensor], *, last: bool) -> tuple[Tensor, ...]:
    """Of a scalar at what nodes compute; after the `last` one nothing is held for another."""
    moving = [x for x in shown if x.requires_grad]
    found = iter(torch.autograd.grad(scalar, moving, retain_graph=not last, materialize_grads=True))
    return tuple(next(found) if x.requires_grad else torch.zeros_like(x) for x in shown)


def row_weights(norms: Tensor) -> Tensor:
    """Weights of mean 1, float32 (positions,), from norms float64 (positions,); equal where nothing moves."""
    mean = norms.mean()
    return (norms / mean if mean > 0 else torch.ones_like(norms)).float()
