"""Limits of the models that a recipe or a saved graph names."""

from __future__ import annotations

import pytest

from vitslim.errors import InputError
from vitslim.graph.trace import timm_model, trace_timm

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 10}


def test_a_model_with_too_many_modules_is_refused_while_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_model, "MODULES_MAX", 100)
    with pytest.raises(InputError, match="'vit_tiny_patch16_224' with these arguments has more than 100 modules"):
        trace_timm("vit_tiny_patch16_224", SMALL | {"depth": 20})
    assert trace_timm("vit_tiny_patch16_224", SMALL | {"depth": 2}).source.classes == 10
