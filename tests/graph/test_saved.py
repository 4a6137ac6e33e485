"""A graph that was saved and loaded is the same graph, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vitslim.errors import InputError
from vitslim.graph.edits import FakeQuantSite, Mask
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch


@pytest.fixture
def compressed(tiny_graph: ModelGraph) -> ModelGraph:
    graph = slice_axes(tiny_graph, {"blocks.0.mlp": range(0, 256, 2), "embed": range(48)})
    graph = insert_squeeze(graph, {"blocks.0": 7})
    name = "blocks.1.mlp.fc1.weight"
    mask = torch.rand(256, 48) > 0.5
    graph.masks, graph.edits = {name: mask}, (*graph.edits, Mask("2:4", (name,)))
    with torch.no_grad():
        graph.parameters()[name].mul_(mask)
    return insert_fake_quant(graph, [FakeQuantSite(x.weight, 8, 8) for x in sketch(graph).linears])


def test_round_trip(compressed: ModelGraph, tmp_path: Path) -> None:
    save_graph(compressed, tmp_path)
    loaded = load_graph(tmp_path)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(loaded.module(images), compressed.module(images))
    assert loaded.edits == compressed.edits
    assert loaded.source == compressed.source
    assert {n: m.tolist() for n, m in loaded.masks.items()} == {n: m.tolist() for n, m in compressed.masks.items()}
    assert sketch(loaded).cost() == sketch(compressed).cost()


def test_a_loaded_graph_can_be_pruned_again(compressed: ModelGraph, tmp_path: Path) -> None:
    save_graph(compressed, tmp_path)
    cut = slice_axes(load_graph(tmp_path), {"blocks.0.mlp": range(64)})
    assert torch.equal(
        cut.module(torch.ones(1, 3, 32, 32)),
        slice_axes(compressed, {"blocks.0.mlp": range(64)}).module(torch.ones(1, 3, 32, 32)),
    )


def test_no_pickle_is_written(compressed: ModelGraph, tmp_path: Path) -> None:
    save_graph(compressed, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    "damage", ["missing", "junk", "version", "edit", "keys", "image", "type", "tensors", "truncated"]
)
def test_damaged_files(compressed: ModelGraph, tmp_path: Path, damage: str) -> None:
    save_graph(compressed, tmp_path)
    path, weights = tmp_path / "graph.json", tmp_path / "weights.safetensors"
    document = json.loads(path.read_text())
    match damage:
        case "missing":
            path.unlink()
        case "junk":
            path.write_text("{")
        case "version":
            path.write_text(json.dumps({**document, "schema_version": 99}))
        case "edit":
            path.write_text(json.dumps({**document, "edits": [{"edit": "Explode"}]}))
        case "keys":
            path.write_text(json.dumps({**document, "source": {}}))
        case "image":
            path.write_text(json.dumps({**document, "source": {**document["source"], "image": [1, -32, 32]}}))
        case "type":
            path.write_text(json.dumps({**document, "source": {**document["source"], "timm": True}}))
        case "tensors":
            path.write_text(json.dumps({**document, "edits": document["edits"][:1]}))
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError) as caught:
        load_graph(tmp_path)
    assert caught.value.hint
