"""Patch embeddings that read pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.anatomy import is_patch_convolution
from vitslim.graph.edits.read_pixels import MIDDLE, PIXEL, pixel_layers, read_pixels
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op
from vitslim.graph.saved import load_graph, save_graph

aten = torch.ops.aten
PATCHES = "patch_embed.proj.weight"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count: int, size: int = 32) -> torch.Tensor:
    """Return random 8-bit images, normalized."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)) / 255
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def test_reading_pixels_changes_no_output_and_is_saved(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    found = read_pixels(tiny_graph, (PATCHES,), MEAN, STD)
    with torch.no_grad():
        torch.testing.assert_close(found.module(images(3)), tiny_graph.module(images(3)), rtol=1e-4, atol=1e-5)
    assert pixel_layers(found) == {PATCHES} and not pixel_layers(tiny_graph)
    save_graph(found, tmp_path)
    assert torch.equal(load_graph(tmp_path).module(images(3)), found.module(images(3)))
    with pytest.raises(StageError, match="reads patches of the image"):
        read_pixels(tiny_graph, ("head.weight",), MEAN, STD)
    with pytest.raises(StageError, match="reads patches of the image"):
        read_pixels(found, (PATCHES,), MEAN, STD)


def test_the_integers_are_the_pixels_without_loss(tiny_graph: ModelGraph) -> None:
    """The layer reads integer multiples of the pixel scale, within the signed limits of 8 bits."""
    found = read_pixels(tiny_graph, (PATCHES,), MEAN, STD)
    conv = next(node for node in found.module.graph.nodes if is_op(node, aten.conv2d.default))
    (output,) = (node for node in found.module.graph.nodes if node.op == "output")
    output.args = ((conv.args[0],),)
    found.module.recompile()
    (seen,) = found.module(images(2))
    integers = seen / PIXEL
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    assert integers.round().min() == -128 and integers.round().max() == 127
    torch.testing.assert_close(seen.amin(), torch.tensor(-MIDDLE), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "patches"),
    [
        ({"stride": 4}, True),
        ({"stride": 2}, False),
        ({"stride": 4, "padding": 2}, False),
        ({"stride": 4, "padding": "valid"}, False),
        ({"stride": 4, "dilation": 2}, False),
        ({"stride": 4, "groups": 3}, False),
    ],
)
def test_only_adjacent_windows_are_patches(keys: Any, patches: bool) -> None:
    graph = torch.fx.Graph()
    image, weight = graph.placeholder("image"), graph.get_attr("weight")
    layer = graph.call_function(aten.conv2d.default, (image, weight), keys)
    assert is_patch_convolution(layer, torch.empty(6, 3 // keys.get("groups", 1), 4, 4)) == patches
