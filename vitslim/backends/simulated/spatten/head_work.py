"""Work of SpAtten head by head, from the counts of images, from stated counts, or from a CSV file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.attention_layers import AttentionModel
from vitslim.backends.simulated.simulator import Bools, Ints
from vitslim.backends.simulated.spatten.spec import SpattenSpec
from vitslim.errors import UsageError
from vitslim.recipe.accelerators import SpattenSettings
from vitslim.results.accelerator_counts import SpattenCounts

NO_SELECTION = -1


@dataclass(frozen=True)
class HeadWork:
    """Attention of several images or generation steps; int64 arrays that broadcast to (items, layers, heads)."""

    queries: Ints
    """0 for a pruned or absent head."""
    keys: Ints
    values: Ints
    """V rows that each query multiplies."""
    value_rows: Ints
    """V rows that at least one query reads."""
    refetched: Ints
    """Queries that read the low bits."""
    selected: Ints
    """Tokens that are selected after the head; `NO_SELECTION` for none. The last head of a layer selects."""
    dim: Ints
    """Columns of K; V has as many."""
    key_bits: Ints
    value_bits: Ints
    query_bits: Ints
    low_bits: Ints
    """Bits of K that a refetch reads."""

    @property
    def active(self) -> Bools:
        """Heads that are computed."""
        return np.asarray(self.queries > 0)

    @property
    def flops(self) -> Ints:
        """Operations of QK^T and PV over the keys, as the paper counts them: value pruning lowers none."""
        return np.asarray(4 * self.dim * self.queries * self.keys)


def stated_counts(model: AttentionModel, settings: SpattenSettings, refetch: float) -> SpattenCounts:
    """Return the counts of one image that follow from the settings alone.

    refetch: fraction of the queries that read low bits. Every V row counts as read.
    """
    layers = len(model.layers)
    shape = (1, layers, max(layer.heads for layer in model.layers))
    queries, keys, values, refetched = (np.zeros(shape, np.int64) for _ in range(4))
    tokens = _tokens_after(model, settings)
    heads_left = [model.layers[0].heads, *settings.head.kept(model.layers[0].heads, layers)]
    arriving = [model.layers[0].keys, *tokens]
    for i, layer in enumerate(model.layers):
        heads = heads_left[i] if settings.head.is_active else layer.heads
        count = arriving[i] if settings.token.is_active else layer.keys
        queries[0, i, :heads] = count if layer.queries == layer.keys else min(layer.queries, count)
        keys[0, i, :heads] = count
        values[0, i, :heads] = settings.value.kept(count)
        refetched[0, i, :heads] = np.rint(refetch * queries[0, i, :heads]) if settings.pq.lsb else 0
    return SpattenCounts(queries, keys, values, keys.copy(), refetched, np.array([tokens], np.int64))


def _tokens_after(model: AttentionModel, settings: SpattenSettings) -> list[int]:
    """Return the tokens that each layer leaves; all of its own without token pruning."""
    if settings.token.is_active:
        return list(settings.token.kept(model.layers[0].keys, len(model.layers), least=2))
    return [layer.keys for layer in model.layers]


def work_of_counts(model: AttentionModel, counts: SpattenCounts, spec: SpattenSpec) -> HeadWork:
    """Return the work of a model with the counts of its images.

    Raises UsageError if Q and V of a head differ in width: SpAtten stores both in lines of one width.
    """
    for layer in model.layers:
        if layer.qk_dim != layer.v_dim:
            raise UsageError(
                f"{layer.name}: Q and K have {layer.qk_dim} columns per head, V has {layer.v_dim}; both must be equal",
                "prune the axes `qk` and `v` to the same width",
            )
        if layer.qk_dim > spec.qk_mult:
            message = f"{layer.name}: a head of {layer.qk_dim} columns exceeds the array of {spec.qk_mult} multipliers"
            raise UsageError(message, f"set qk_mult to at least {layer.qk_dim}")
    selected = np.full_like(counts.queries, NO_SELECTION)
    arriving = counts.keys.max(axis=2)
    chosen = (spec.token.is_active) & (counts.tokens_after < arriving)
    last = _last_head(counts.queries > 0)
    selected[last & chosen[:, :, None]] = np.broadcast_to(counts.tokens_after[:, :, None], selected.shape)[
        last & chosen[:, :, None]
    ]
    dims = np.array([layer.qk_dim for layer in model.layers], np.int64)[None, :, None]
    bits = np.array(spec.pq.msb, np.int64)
    return HeadWork(
        counts.queries, counts.keys, counts.values, counts.value_rows, counts.refetched, selected, dims,
        key_bits=bits, value_bits=bits, query_bits=bits + spec.pq.lsb, low_bits=np.array(spec.pq.lsb, np.int64),
    )  # fmt: skip


def _last_head(active: Bools) -> Bools:
    """Return True for the last active head of each layer; (items, layers, heads)."""
    places = np.arange(active.shape[2])
    last = np.where(active, places, -1).max(axis=2, keepdims=True)
    return np.asarray(active & (places == last))


def last_head(work: HeadWork) -> Bools:
    """Return True for the last computed head of each layer; (items, layers, heads)."""
    return _last_head(work.active)
