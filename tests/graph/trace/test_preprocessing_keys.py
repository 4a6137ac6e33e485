"""`model.preprocessing` overrides the model's own values; channels and sizes are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import UsageError
from vitslim.graph.model_graph import Preprocessing
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.trace import load_timm, trace_timm

VIT = "vit_tiny_patch16_224"


def test_each_key_replaces_one_value(tiny_kwargs: dict[str, Any]) -> None:
    own = load_timm(VIT, tiny_kwargs)[1].preprocessing
    assert own == Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.4,), "crop_pct": 1.0, "crop_mode": "border", "interpolation": "box"}
    found = load_timm(VIT, tiny_kwargs, preprocessing=given)[1].preprocessing
    assert found == Preprocessing((0.1, 0.2, 0.3), (0.4,) * 3, "box", 1.0, "border")
    assert load_timm(VIT, tiny_kwargs, preprocessing={"std": (0.4,)})[1].preprocessing.mean == own.mean


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.1, 0.2)}, "takes 3 channels, model.preprocessing.mean has 2 values"),
        ({"input_size": (1, 32, 32)}, "takes 3 channels, model.preprocessing.input_size has 1"),
        ({"input_size": (3, 48, 48)}, "does not take images of 3x48x48"),
    ],
)
def test_values_of_another_input_are_refused(tiny_kwargs: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_timm(VIT, {**tiny_kwargs, "in_chans": 3}, preprocessing=given)
    assert error.value.hint


@pytest.mark.parametrize("kwargs", [{}, {"img_size": 32}])
def test_one_channel_needs_no_size(tiny_kwargs: dict[str, Any], kwargs: dict[str, Any]) -> None:
    sizes = {key: value for key, value in tiny_kwargs.items() if key != "img_size"}
    source = load_timm(VIT, {**sizes, "in_chans": 1, **kwargs})[1]
    assert source.image == (1, *(kwargs.get("img_size", 224),) * 2)
    assert source.preprocessing.mean == (0.5,)


def test_a_model_for_any_size_takes_the_size_of_the_key_and_is_loaded_with_it(tmp_path: Path) -> None:
    graph = trace_timm("test_resnet", {"num_classes": 4}, preprocessing={"input_size": (3, 96, 64), "mean": (0.0,)})
    assert graph.source.image == (3, 96, 64)
    save_graph(graph, tmp_path)
    assert load_graph(tmp_path).source == graph.source
