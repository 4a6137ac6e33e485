"""Pictures of kept and squeezed tokens for the report of a run."""

from __future__ import annotations

import base64

from vitslim.data import Dataset, thumbnail
from vitslim.data.dataset import UNLABELED
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.token_trace import trace_tokens
from vitslim.results import SqueezedBlock, TokenPicture

IMAGES = 4
THUMBNAIL_SIDE = 112
"""Pixels."""


def token_pictures(graph: ModelGraph, dataset: Dataset, seed: int) -> tuple[TokenPicture, ...]:
    """Return pictures of at most `IMAGES` images, balanced over the classes.

    Empty for a graph that reduces no tokens, and for one whose tokens are not the patches of one square grid.
    """
    samples = dataset.balanced(IMAGES, seed)
    images, _ = next(iter(samples.batches(IMAGES)))
    trace = trace_tokens(graph, images)
    if trace is None:
        return ()
    return tuple(
        picture_of(
            samples, position, (trace.rows, trace.columns),
            tuple(SqueezedBlock(block=step.block, kept=step.kept, squeezed=step.squeezed) for step in steps),
        )
        for position, steps in enumerate(trace.images)
    )  # fmt: skip


def _label_text(samples: Dataset, position: int) -> str:
    """Return the class names of an image; empty without labels."""
    label = samples.labels[position]
    found = label if isinstance(label, tuple) else (label,)
    return ", ".join(samples.class_names[one] for one in found if one != UNLABELED)


def picture_of(
    samples: Dataset, position: int, grid: tuple[int, int], blocks: tuple[SqueezedBlock, ...]
) -> TokenPicture:
    """Return the picture of one image; grid: rows and columns of its patches."""
    media_type, file = thumbnail(samples.pixels(position), THUMBNAIL_SIDE)
    return TokenPicture(
        label=_label_text(samples, position),
        media_type=media_type,
        image=base64.b64encode(file).decode("ascii"),
        rows=grid[0],
        columns=grid[1],
        blocks=blocks,
    )
