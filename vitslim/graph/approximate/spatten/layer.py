"""One attention of a graph under SpAtten, with the state that cascade pruning carries from layer to layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitslim.graph.approximate.spatten.attention import (
    Operands,
    head_importance,
    probabilities,
    select,
    token_importance,
    upper_values,
    used_values,
)
from vitslim.recipe.accelerators import SpattenSettings


class SpattenState(NamedTuple):
    """What a layer hands to the next one."""

    tokens: Tensor | None = None
    """bool (B, N): tokens that are left; None: all."""
    heads: Tensor | None = None
    """bool (B, H); None: all."""
    token_scores: Tensor | None = None
    """float (B, N): accumulated importance; None if tokens are not pruned."""
    head_scores: Tensor | None = None
    counts: tuple[Tensor, ...] = ()
    """For each layer so far int64 (B, H, 5): queries, keys, values, value rows, refetched queries."""
    left: tuple[Tensor, ...] = ()
    """For each layer so far the tokens that it leaves: bool (B, N)."""


class LayerPlan(NamedTuple):
    """Counts of one layer, which the settings determine."""

    keys: int
    """Tokens that arrive."""
    tokens_after: int
    heads_after: int
    prefix: int
    """Class token and registers, which are never pruned."""


class SpattenLayer(nn.Module):
    """Compute one attention, and select the tokens and heads that are left after it."""

    def __init__(self, settings: SpattenSettings, plan: LayerPlan, scale: float) -> None:
        super().__init__()
        self.settings, self.plan, self.scale = settings, plan, scale

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, state: SpattenState | None
    ) -> tuple[Tensor, SpattenState]:
        """Return the output (B, H, n, e) and the state after the layer; operands as in scaled dot-product attention."""
        state = state or SpattenState()
        queries = state.tokens if q.shape[2] == k.shape[2] else None
        x = Operands(q, k, v, self.scale, bias, state.tokens, queries)
        found, refetched = probabilities(x, self.settings.pq)
        used = used_values(found, self.settings.value.kept(self.plan.keys), state.tokens)
        output = torch.matmul(found if bool(used.all()) else found * used, upper_values(x, self.settings.pq))
        if state.heads is not None:
            output = output * state.heads[:, :, None, None]
        with torch.no_grad():
            counted = self._counts(x, used, refetched, state.heads)
            return output, self._next(state, found, output, counted)

    def _counts(self, x: Operands, used: Tensor, refetched: Tensor, heads: Tensor | None) -> Tensor:
        """Return int64 (B, H, 5); zeros for pruned heads."""
        alive = torch.ones(x.q.shape[:3], dtype=torch.bool, device=x.q.device)
        if x.queries is not None:
            alive &= x.queries[:, None, :]
        if heads is not None:
            alive &= heads[:, :, None]
        read = used & alive[..., None]
        queries = alive.sum(dim=2)
        has_queries = queries > 0
        keys = (
            torch.full_like(queries, x.k.shape[2]) if x.keys is None else x.keys.sum(dim=1)[:, None].expand_as(queries)
        )
        values = read.sum(dim=(2, 3)) // queries.clamp(min=1)
        rows, low = read.any(dim=2).sum(dim=2), (refetched & alive).sum(dim=2)
        return torch.stack([queries, keys * has_queries, values, rows, low], dim=2)

    def _next(self, state: SpattenState, found: Tensor, output: Tensor, counted: Tensor) -> SpattenState:
        """Return the state with accumulated importance and the tokens and heads that are left."""
        tokens, heads = state.tokens, state.heads
        token_scores, head_scores = state.token_scores, state.head_scores
        queries = tokens if found.shape[2] == found.shape[3] else None
        if self.settings.token.is_active:
            scores = token_importance(found, heads, queries)
            token_scores = scores if token_scores is None else token_scores + scores
            if self.plan.tokens_after < self.plan.keys:
                tokens = select(token_scores, tokens, self.plan.tokens_after, self.plan.prefix)
        if self.settings.head.is_active:
            scores = head_importance(output, queries)
            head_scores = scores if head_scores is None else head_scores + scores
            if self.plan.heads_after < output.shape[1]:
                heads = select(head_scores, heads, self.plan.heads_after)
        left = tokens
        if left is None:
            left = torch.ones(found.shape[0], found.shape[3], dtype=torch.bool, device=found.device)
        return SpattenState(tokens, heads, token_scores, head_scores, (*state.counts, counted), (*state.left, left))
