"""Train a new predictor to rank tokens as the attention of its block does, with the rest of the model frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from vitslim.data import Dataset
from vitslim.data.source import Normalization
from vitslim.errors import StageError
from vitslim.graph.anatomy import block_input, find_anatomy
from vitslim.graph.edits.insert_squeeze import insert_score
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.masked_tokens import ranked_decision
from vitslim.progress import Progress
from vitslim.recipe.train import Train
from vitslim.training.batch import Batch
from vitslim.training.evaluate import predict
from vitslim.training.loop import train
from vitslim.training.record import LOSS

IMAGES_MAX = 256
"""Largest number of calibration images whose tokens are stored."""
HELD_OUT = 4
"""Every fourth image is not trained on; rank agreement is measured on these images."""
FORWARD_BATCH = 32
SCHEDULE = Train(epochs=20, batch=16, lr=3e-3)


@dataclass(frozen=True)
class Observed:
    """Tokens at the input of a block, and their scores by its attention."""

    tokens: Tensor
    """float32 (images, prefix + patches, channels)."""
    score: Tensor
    """float32 (images, patches): class attention, or received attention in a model without a class token."""


@dataclass(frozen=True)
class StoredTokens:
    """A source of datasets whose images are stored tokens."""

    tokens: Tensor = field(repr=False)
    workers: int = 0

    @property
    def normalization(self) -> Normalization:
        """Tokens are not normalized."""
        return Normalization((), ())

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Tensor:  # noqa: ARG002 - never augmented
        """Return the tokens of one image."""
        return self.tokens[index]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return the tokens unchanged."""
        return pixels


def observe(graph: ModelGraph, block: str, images: Dataset, progress: Progress) -> Observed:
    """Return the tokens that enter a block that is not squeezed yet, and their scores, of at most IMAGES_MAX images.

    Raises StageError for a block that does not exist or has no attention with a residual connection.
    """
    chosen = images.balanced(IMAGES_MAX)
    reader = _reader(graph.copy(), block)
    batches = progress.track(chosen.batches(FORWARD_BATCH), f"observing {block}")
    with torch.no_grad():
        found = [reader(pixels) for pixels, _ in batches]
    return Observed(torch.cat([tokens for tokens, _ in found]), torch.cat([score for _, score in found]))


def _reader(graph: ModelGraph, block: str) -> GraphModule:
    """Change a graph in place into a module that returns the tokens at the input of a block, and their scores."""
    anatomy = find_anatomy(graph)
    found = anatomy.block(block)
    if found is None or found.attention is None:
        raise StageError(f"token-squeeze: '{block}' has no attention", "name another block")
    nodes = graph.module.graph
    with nodes.inserting_before(found.attention.node):
        score = insert_score(nodes, found.attention, anatomy)
    nodes.output_node().args = ((block_input(found), score),)
    nodes.eliminate_dead_code()
    graph.module.recompile()
    return graph.module.eval()


def rank_agreement(first: Tensor, second: Tensor, keep: int) -> float:
    """Return the fraction of the `keep` highest scores of each row, (B, N), that two scores share; mean over rows."""
    shared = ranked_decision(first, None, keep) * ranked_decision(second, None, keep)
    return float(shared.sum(dim=1).mean() / keep)


def fit(
    predictor: GraphModule, observed: Observed, keep: int, seed: int, progress: Progress, label: str
) -> Mapping[str, float]:
    """Train a predictor in place, so that the `keep` tokens with the highest scores get the highest probabilities.

    predictor: maps tokens (B, prefix + patches, C) to logits (B, patches, 2). The loss is the cross-entropy of the
    membership in the top `keep`, so the probabilities add up to about `keep`. Equal seeds give equal weights.
    Returns `rank_agreement` on images that were not trained on, before and after.
    """
    count = len(observed.tokens)
    held_out = list(range(0, count, HELD_OUT))
    trained = [i for i in range(count) if i % HELD_OUT] or held_out
    target = ranked_decision(observed.score[trained], None, keep)
    images = Dataset("tokens", "calibration", StoredTokens(observed.tokens), tuple(range(count)), (0,) * count, (), "")

    def objective(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        expected = target.to(logits.device)[batch.positions]
        return {LOSS: functional.binary_cross_entropy_with_logits(logits[..., 0] - logits[..., 1], expected)}

    def agreement() -> float:
        logits, _ = predict(predictor, images.subset(held_out), FORWARD_BATCH, progress, label)
        probabilities = logits.view(len(logits), -1, 2).softmax(dim=-1)[..., 0]
        return rank_agreement(probabilities, observed.score[held_out], keep)

    before = agreement()
    metrics = train(predictor, images.subset(trained), objective, SCHEDULE, seed, {}, progress, label=label)
    return {"untrained_rank_agreement": before, "rank_agreement": agreement(), "seconds": metrics["seconds"]}
