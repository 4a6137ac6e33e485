"""Permuting every prunable axis must not change the output: if it does, a rule forgot to tie something."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vitslim.graph.axes.table import AxisTable
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


def verify_axes(graph: ModelGraph, seed: int = 0, table: AxisTable | None = None) -> Verification:
    """Permute every prunable axis at random and compare the outputs on two random images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, *graph.source.image, generator=generator)
    subject = graph
    if table is not None:
        subject = ModelGraph(graph.module, graph.source, graph.edits, graph.masks)
        subject.__dict__["axes"] = table
    orders = {a.name: torch.randperm(a.size, generator=generator).tolist() for a in subject.axes.prunable}
    permuted = slice_axes(subject, orders)
    with torch.no_grad():
        expected, found = graph.module(images), permuted.module(images)
    error = (expected - found).abs().max() / expected.abs().max().clamp_min(1e-12)
    return Verification(float(error), len(orders))
