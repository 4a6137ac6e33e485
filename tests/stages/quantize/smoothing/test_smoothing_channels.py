"""Smoothing factors, and smoothing of traced models: it changes no output."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.graph.nodes import tensor_of
from vitslim.graph.trace import trace_timm
from vitslim.stages.quantize.smoothing.channels import find_smoothable, smooth, smoothing_factors


def test_smoothing_factors_make_ranges_equal_and_centered() -> None:
    low, high = torch.tensor([-1.0, 0.0, -8.0, 2.0]), torch.tensor([1.0, 4.0, 0.0, 2.0])
    shift, factor = smoothing_factors(low, high, 1.0, shifts=True)
    assert shift.tolist() == [0, 2, -4, 2]
    reach = torch.maximum((high - shift).abs(), (low - shift).abs()) / factor
    assert reach[:3].tolist() == [1, 1, 1]
    assert factor[3] == 1
    unmoved, _ = smoothing_factors(low, high, 1.0, shifts=False)
    assert (unmoved == 0).all()
    assert (smoothing_factors(low, high, 0.0, shifts=True)[1] == 1).all()


@pytest.mark.parametrize(
    ("name", "kwargs", "places"),
    [
        ("deit_tiny_patch16_224", {"depth": 2}, 7),
        pytest.param("swin_tiny_patch4_window7_224", {"depths": (1, 2), "embed_dim": 48}, 11, marks=pytest.mark.slow),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 96, "num_heads": 3}, 3),
        ("xcit_nano_12_p16_224", {"depth": 1}, None),
    ],
)
def test_smoothing_changes_no_output(name: str, kwargs: dict[str, Any], places: int | None) -> None:
    graph = trace_timm(name, kwargs)
    generator = torch.Generator().manual_seed(0)
    found = find_smoothable(graph)
    assert places is None or len(found) == places
    with torch.no_grad():
        for parameter in graph.module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        changes = {}
        for place in found:
            channels = tensor_of(graph.module, place.readers[0]).shape[1]
            low, high = torch.rand(2, channels, generator=generator) + 0.1
            changes[place.readers[0]] = smoothing_factors(-low, high, 1.0, place.shifts)
        images = torch.randn(2, *graph.source.image, generator=generator)
        before, after = graph.module(images), smooth(graph, changes).module(images)
    assert ((before - after).abs().max() / before.abs().max()) < 1e-5
    assert found
