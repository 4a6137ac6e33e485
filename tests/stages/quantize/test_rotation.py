"""Rotation of residual streams: outputs do not change, and streams that cannot be rotated stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.rotation import find_streams, rotate, rotation
from vitslim.training.evaluate import sqnr_db

SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}


def perturbed(graph: ModelGraph) -> ModelGraph:
    """Return the graph with weights like trained ones: no norm, bias or layer scale has its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in graph.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return graph


def traced(timm: str, **kwargs: Any) -> ModelGraph:
    return perturbed(trace_timm(timm, {"num_classes": 10, **kwargs}))


def logits(graph: ModelGraph) -> torch.Tensor:
    images = torch.randn(4, *graph.source.image, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return graph.module(images)


def test_a_rotation_keeps_lengths_and_the_vector_of_ones() -> None:
    rotated = rotation(24, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotated @ rotated.T, torch.eye(24, dtype=torch.float64))
    torch.testing.assert_close(rotated.sum(dim=1), torch.ones(24, dtype=torch.float64))
    assert rotated.abs().amax() < 0.9
    assert not torch.equal(rotated, rotation(24, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("timm", "kwargs", "axes", "scales"),
    [
        ("vit_tiny_patch16_224", {"class_token": True}, ["embed"], 0),
        ("vit_tiny_patch16_224", {"init_values": 0.3, "global_pool": "avg", "class_token": False}, ["embed"], 4),
        ("cait_xxs24_224", {"depth_token_only": 1}, ["embed"], 6),
    ],
)
def test_rotated_models_compute_the_same(timm: str, kwargs: dict[str, Any], axes: list[str], scales: int) -> None:
    graph = traced(timm, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=2, **kwargs)
    streams, fixed = find_streams(graph)
    assert [stream.name for stream in streams] == axes
    assert not fixed
    assert len(streams[0].scales) == scales
    rotated = rotate(graph, streams, seed=0)
    torch.testing.assert_close(logits(rotated), logits(graph), rtol=1e-4, atol=1e-4)
    name = "blocks.0.attn.proj.weight"
    assert not torch.allclose(tensor_of(rotated.module, name), tensor_of(graph.module, name), atol=0.01)


def test_tokens_are_squeezed_alike_in_any_basis(tiny_graph: ModelGraph) -> None:
    squeezed = insert_squeeze(perturbed(tiny_graph), {"blocks.0": 7})
    streams, fixed = find_streams(squeezed)
    assert ([stream.name for stream in streams], fixed) == (["embed"], {})
    torch.testing.assert_close(logits(rotate(squeezed, streams, 0)), logits(squeezed), rtol=1e-4, atol=1e-4)


def test_only_the_last_stream_of_swin_can_be_rotated() -> None:
    graph = traced("swin_tiny_patch4_window7_224", **SWIN)
    streams, fixed = find_streams(graph)
    assert [stream.name for stream in streams] == ["layers.1.embed"]
    assert "patch_embed.norm.weight" in fixed["layers.0.embed"]
    torch.testing.assert_close(logits(rotate(graph, streams, 0)), logits(graph), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"qkv_bias": False}, "blocks.0.norm1.weight"),
        ({"num_classes": 0}, "is an output of the model"),
    ],
)
def test_streams_that_are_not_rotated_have_a_reason(
    tiny_kwargs: dict[str, Any], kwargs: dict[str, Any], why: str
) -> None:
    streams, fixed = find_streams(perturbed(trace_timm("vit_tiny_patch16_224", tiny_kwargs | kwargs)))
    assert streams == ()
    assert [why in reason for reason in fixed.values()] == [True]


def test_zeros_of_a_mask_stay(tiny_graph: ModelGraph) -> None:
    name = "blocks.0.mlp.fc1.weight"
    masked = replace(tiny_graph, masks={name: torch.ones_like(tensor_of(tiny_graph.module, name), dtype=torch.bool)})
    streams, fixed = find_streams(masked)
    assert streams == ()
    assert name in fixed["embed"]


def test_rotation_removes_the_error_of_an_outlier_channel(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    graph, context = perturbed(tiny_graph), digits_context(tiny_graph, calibration=40)
    with torch.no_grad():
        tensor_of(graph.module, "pos_embed")[..., 5] += 30
    images = torch.stack([context.data.calibration[i][0] for i in range(8)])
    found = {}
    for is_rotated in (False, True):
        keys: dict[str, Any] = {"smooth": False, "activation_scaling": "none", "symmetric": True, "bits": 8}
        result = PtqStage(Ptq(method="ptq", rotate=is_rotated, **keys)).apply(graph, context)
        with torch.no_grad():
            found[is_rotated] = sqnr_db(graph.module(images), result.graph.module(images))
        assert ("embed" in {note.layer for note in result.changes}) == is_rotated
    assert found[True] > found[False] + 5


def test_streams_that_are_not_rotated_are_in_the_report(
    tiny_kwargs: dict[str, Any], digits_context: Callable[..., StageContext]
) -> None:
    graph = trace_timm("vit_tiny_patch16_224", tiny_kwargs | {"qkv_bias": False})
    result = PtqStage(Ptq(method="ptq", rotate=True)).apply(graph, digits_context(graph))
    (note,) = result.skipped
    assert (note.layer, note.result) == ("embed", "not rotated")
    assert "blocks.0.norm1.weight" in note.reason
