"""Find the weights of a model in the content of a checkpoint: choose the entry, and strip prefixes of wrappers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from vitslim.errors import InputError

Tensors = dict[str, torch.Tensor]
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of training checkpoints that hold weights; averaged weights come first, as in timm."""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "visual.trunk.")
"""Prefixes that DistributedDataParallel, torch.compile, Lightning and models around a timm model add to names."""
SHOWN = 5
"""Number of entries that an error names."""


def choose_entry(content: Any, entry: str | None, path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """Return the tensors of an entry by name, and a note on the choice.

    entry: name of the entry, or None for the first of `ENTRIES`; a checkpoint without any of them holds the weights
    itself. Raises InputError if there is no such entry or no tensor in it.
    """
    holders = {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
    holders = {key: value for key, value in holders.items() if isinstance(value, Mapping) and _tensors(value)}
    if entry is not None and entry not in holders:
        found = ", ".join(list(holders)[:SHOWN]) or "none, the tensors are at the top"
        message = f"checkpoint '{path}' has no entry '{entry}' with tensors"
        raise InputError(message, f"entries with tensors: {found}; set or remove model.checkpoint_entry")
    chosen = entry or next((name for name in ENTRIES if name in holders), None)
    if chosen is not None:
        others = [name for name in ENTRIES if name in holders and name != chosen]
        aside = f"; {', '.join(others)} not used" if others else ""
        return _tensors(holders[chosen]), (f"weights of the entry '{chosen}'{aside}",)
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    if not tensors:
        known = ", ".join(list(holders)[:SHOWN])
        hint = f"set model.checkpoint_entry to one of {known}" if known else "save model.state_dict() in it"
        raise InputError(f"checkpoint '{path}' holds no tensors by name", hint)
    return tensors, ()


def strip_prefixes(tensors: Tensors, expected: Collection[str]) -> tuple[Tensors, tuple[str, ...]]:
    """Return the tensors without prefixes that the model does not have, and a note for each prefix.

    expected: names in the model. Under `visual.trunk.` is the image tower of a CLIP model: all other tensors are left
    out.
    """
    notes: list[str] = []
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            inside = [name for name in tensors if name.startswith(prefix)]
            is_tower = prefix == "visual.trunk."
            if not inside or any(name.startswith(prefix) for name in expected):
                continue
            if not is_tower and 2 * len(inside) <= len(tensors):
                continue
            outside = {} if is_tower else {name: t for name, t in tensors.items() if not name.startswith(prefix)}
            left_out = len(tensors) - len(inside) - len(outside)
            tensors = {name.removeprefix(prefix): tensors[name] for name in inside} | outside
            aside = f", {left_out} tensors of other parts left out" if left_out else ""
            notes.append(f"prefix '{prefix}' removed{aside}")
            changed = True
    return tensors, tuple(notes)


def _tensors(values: Mapping[Any, Any]) -> Tensors:
    """Return the tensors among some values; floating-point ones become float32."""
    return {
        str(key): value.float() if value.is_floating_point() else value
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }
