"""Decisions of FACT from predicted logits: entries of attention, one-hot rows, and tokens with an INT8 MLP."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """Entries of attention that are computed."""

    selected: Tensor
    """bool (B, H, n, m): the `count` largest predicted logits of each row."""
    one_hot: Tensor
    """bool (B, H, n): rows whose softmax is taken as one-hot."""
    used: Tensor
    """bool (B, H, n, m): `selected`; in a one-hot row only the largest."""


def select_entries(logits: Tensor, count: int, margin: float | None, prefix: int) -> Selection:
    """Return the selected entries of each row and the one-hot rows.

    logits: predicted, float (B, H, n, m). count: entries of a row. margin: a row is one-hot if its largest logit
    exceeds the second largest by more than this; None: never. prefix: the first columns, class token and registers, are
    always selected and count among the entries.
    """
    ranked = logits.clone()
    ranked[..., :prefix] = float("inf")
    places = ranked.topk(min(count, logits.shape[-1]), dim=-1, sorted=False).indices
    selected = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, places, True)
    if margin is None or logits.shape[-1] == 1:
        return Selection(selected, torch.zeros_like(selected[..., 0]), selected)
    best, place = logits.max(dim=-1, keepdim=True)
    second = logits.scatter(-1, place, float("-inf")).amax(dim=-1)
    one_hot = best[..., 0] - second > margin
    single = torch.zeros_like(selected).scatter_(-1, place, True)
    return Selection(selected, one_hot, torch.where(one_hot[..., None], single, selected))


def important_tokens(selected: Tensor, fraction: float | Literal["mean"], prefix: int) -> Tensor:
    """Return the tokens with an INT8 MLP: bool (B, m), those with at least a fraction of all selections of the image.

    selected: bool (B, H, n, m). fraction: `mean` is 1 / m. The first `prefix` tokens are always important.
    """
    selections = selected.sum(dim=(1, 2))
    share = 1 / selections.shape[1] if fraction == "mean" else fraction
    found = selections >= share * selections.sum(dim=1, keepdim=True)
    found[:, :prefix] = True
    return found
