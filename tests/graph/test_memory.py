"""Batch sizes within the memory limit."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.graph import memory
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.memory import images_at_once, images_held
from vitslim.graph.trace import trace_timm

SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


def test_large_images_and_backward_passes_have_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (trace_timm("vit_tiny_patch16_224", SMALL | {"img_size": size}) for size in (32, 128))
    assert images_at_once(small, 256) == 256
    monkeypatch.setattr(memory, "MEMORY_BYTES", 4 * 2**20)
    few = images_at_once(small, 10**6)
    assert 1 < images_at_once(large, 10**6) < few / 12
    layers = [nodes[0] for nodes in layer_nodes(small.module).values()]
    assert few < images_held(small, layers, 10**6) < 4 * few
    assert images_at_once(small, 10**6, backward=True) < few / 2
    assert images_at_once(small, 3) == 3
    # the peak is the hidden units of an MLP before and after GELU, and the residual
    held = 4 * 17 * (2 * 128 + 32)
    assert few == 4 * 2**20 // held
    monkeypatch.setattr(memory, "MEMORY_BYTES", 1)
    assert images_at_once(large, 10**6) == 1
