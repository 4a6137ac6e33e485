"""Permuting every prunable axis must not change the output: if it does, a rule forgot to tie something."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vitslim.graph.edit import slice_axes
from vitslim.graph.model_graph import ModelGraph

MAX_ERROR = 1e-5
"""Largest relative change of the outputs that rounding explains; a forgotten tie gives 0.4 or more."""


@dataclass(frozen=True)
class Verification:
    """Outcome of permuting axes."""

    max_error: float
    """Largest change of a logit, relative to the largest logit."""
    axes: int
    """How many axes were permuted."""


def verify_axes(graph: ModelGraph, seed: int = 0) -> Verification:
    """Permute every prunable axis at random and compare the outputs on two random images.

    The structure is judged, not the weights: norms, biases and layer scales are replaced by random ones, because the
    ones and zeros of a fresh model look the same in any order.
    """
    generator = torch.Generator().manual_seed(seed)
    subject = _with_random_vectors(graph, generator)
    subject.axes = graph.axes
    images = torch.randn(2, *graph.source.image, generator=generator)
    orders = {a.name: torch.randperm(a.size, generator=generator).tolist() for a in graph.axes.prunable}
    permuted = slice_axes(subject, orders)
    with torch.no_grad():
        expected, found = subject.module(images), permuted.module(images)
    error = (expected - found).abs().max() / expected.abs().max().clamp_min(1e-12)
    return Verification(float(error), len(orders))


def _with_random_vectors(graph: ModelGraph, generator: torch.Generator) -> ModelGraph:
    """A copy whose one-dimensional float tensors are random between 0.5 and 1.5."""
    copy = graph.copy()
    for tensor in (*copy.module.parameters(), *copy.module.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return copy
