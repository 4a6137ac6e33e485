"""Residual branches are found in any graph, and are removed with all their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from vitslim.errors import StageError
from vitslim.graph.anatomy import Branch, find_branches
from vitslim.graph.axes.tensor_shapes import tensor_shapes
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.remove_blocks import remove_blocks
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import attention_cuts, cost, sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.trace.normalize import normalize
from vitslim.graph.verify import MAX_ERROR, verify_axes
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.onnx_export import export_onnx

DEPTH = 4


@pytest.fixture(scope="session")
def four_blocks(tiny_kwargs: dict[str, Any]) -> ModelGraph:
    return trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "depth": DEPTH})


def branches(graph: ModelGraph) -> tuple[Branch, ...]:
    return find_branches(graph.module, tensor_shapes(graph.module, graph.source.image))


def logits(graph: ModelGraph) -> Tensor:
    images = torch.randn(2, *graph.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: Tensor = graph.module(images)
    return result


def test_a_vit_has_two_branches_a_block(four_blocks: ModelGraph) -> None:
    found = branches(four_blocks)
    assert [(b.name, b.block) for b in found] == [
        (f"blocks.{i}.{part}", f"blocks.{i}") for i in range(DEPTH) for part in ("attn", "mlp")
    ]
    assert not any(branch.obstacle for branch in found)
    norm, layers = "blocks.2.norm2.", ("blocks.2.mlp.fc1.", "blocks.2.mlp.fc2.")
    assert found[5].parameters == tuple(p + leaf for p in (norm, *layers) for leaf in ("weight", "bias"))


def test_removing_a_block_equals_one_that_adds_zero(four_blocks: ModelGraph) -> None:
    """Removing a block gives the same outputs as setting its branches to zero."""
    silent = four_blocks.copy()
    with torch.no_grad():
        for layer in ("attn.proj", "mlp.fc2"):
            silent.parameters()[f"blocks.1.{layer}.weight"].zero_()
            silent.parameters()[f"blocks.1.{layer}.bias"].zero_()
    shorter = remove_blocks(four_blocks, ["blocks.1"])
    assert torch.equal(logits(shorter), logits(silent))
    assert not torch.equal(logits(shorter), logits(four_blocks))


@pytest.mark.parametrize("names", [("blocks.1",), ("blocks.3.attn",), ("blocks.0", "blocks.2.mlp", "blocks.1.attn")])
def test_only_the_parameters_of_the_block_are_removed(four_blocks: ModelGraph, names: tuple[str, ...]) -> None:
    before = {name: tensor.clone() for name, tensor in four_blocks.module.state_dict().items()}
    dead = {p for b in branches(four_blocks) for p in b.parameters if {b.name, b.block} & set(names)}
    shorter = remove_blocks(four_blocks, names)
    state = shorter.module.state_dict()
    assert state.keys() == before.keys() - dead
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert four_blocks.module.state_dict().keys() == before.keys()
    assert four_blocks.edits == ()


@pytest.mark.parametrize("names", [("blocks.1",), ("blocks.3", "blocks.0"), ("blocks.3.attn", "blocks.0.mlp")])
def test_the_sketch_has_the_cost_of_the_edited_graph(four_blocks: ModelGraph, names: tuple[str, ...]) -> None:
    members = [b.name for b in branches(four_blocks) if {b.name, b.block} & set(names)]
    planned, found = sketch(four_blocks).with_removed(members), sketch(remove_blocks(four_blocks, names))
    assert planned.cost() == found.cost()
    assert planned.blocks == found.blocks
    assert planned.parameters == found.parameters
    assert planned.branches == found.branches
    assert set(planned.token_axes) == set(found.token_axes)
    assert {n: s for n, s in planned.axes.items() if not n.startswith("tokens")} == {
        n: s for n, s in found.axes.items() if not n.startswith("tokens")
    }


def test_remaining_blocks_keep_their_names_and_can_be_pruned_squeezed_saved_and_exported(
    four_blocks: ModelGraph, tmp_path: Path
) -> None:
    graph = remove_blocks(four_blocks, ["blocks.1"])
    assert {axis.name for axis in graph.axes.prunable} == {
        axis.name for axis in four_blocks.axes.prunable if not axis.name.startswith("blocks.1.")
    }
    assert verify_axes(graph).max_error < MAX_ERROR
    graph = slice_axes(graph, {"blocks.2.mlp": range(128), "embed": range(48)})
    graph = remove_blocks(insert_squeeze(graph, {"blocks.2": 9}), ["blocks.3.mlp"])
    assert verify_axes(graph).max_error < MAX_ERROR
    save_graph(graph, tmp_path)
    expected = logits(graph)
    loaded = load_graph(tmp_path)
    assert torch.equal(logits(loaded), expected)
    path = export_onnx(loaded, tmp_path / "model.onnx").path
    images = torch.randn(2, *graph.source.image, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(OnnxFile(path)(images), expected, atol=1e-5)


def test_a_block_without_attention_is_still_a_block(four_blocks: ModelGraph) -> None:
    graph = remove_blocks(four_blocks, ["blocks.3.attn"])
    assert graph.axes["blocks.3.mlp"].kind == "mlp"
    found = sketch(graph)
    assert found.blocks == tuple(f"blocks.{i}" for i in range(DEPTH))
    assert {layer.role for layer in found.linears if layer.block == "blocks.3"} == {"fc1", "fc2"}


def test_attention_that_scores_tokens_cannot_be_removed(four_blocks: ModelGraph) -> None:
    squeezed = insert_squeeze(four_blocks, {"blocks.1": 8})
    stuck = {b.name: b.obstacle for b in branches(squeezed) if b.obstacle}
    assert stuck == {"blocks.1.attn": "its result is used elsewhere"}
    dense = sketch(four_blocks)
    planned = dense.with_squeeze(attention_cuts(dense, {"blocks.1": 8}))
    assert {b.name: b.obstacle for b in planned.branches if b.obstacle} == stuck
    with pytest.raises(StageError, match=r"'blocks\.1\.attn' cannot be removed: its result is used elsewhere"):
        remove_blocks(squeezed, ["blocks.1"])
    assert cost(remove_blocks(squeezed, ["blocks.1.mlp"])).params < cost(squeezed).params


def test_unknown_names_are_refused(four_blocks: ModelGraph) -> None:
    with pytest.raises(StageError, match=r"no block or residual branch 'blocks\.7'") as error:
        remove_blocks(four_blocks, ["blocks.7"])
    assert "blocks." in error.value.hint
    with pytest.raises(StageError, match=r"branch 'blocks\.1'"):
        remove_blocks(four_blocks, ["blocks.1", "blocks.1"])


def test_a_block_with_a_projection_cannot_be_removed() -> None:
    """ResNet: the first block of a stage has a projection in its shortcut; in-place operators are supported."""
    graph = trace_timm("resnet18", {"num_classes": 10})
    stuck = {b.name: b.obstacle for b in branches(graph) if b.obstacle}
    assert stuck == {
        f"layer{i}.0": f"its input goes through a layer of its own (layer{i}.0.downsample.0)" for i in (2, 3, 4)
    }
    shorter = remove_blocks(graph, ["layer1.1", "layer3.1"])
    assert not [name for name in shorter.module.state_dict() if name.startswith(("layer1.1.", "layer3.1."))]
    assert logits(shorter).isfinite().all()
    members = [b.name for b in branches(graph) if b.block in {"layer1.1", "layer3.1"}]
    assert sketch(graph).with_removed(members).cost() == cost(shorter)


class Reader(nn.Module):
    """A query that reads the features of a trunk in one residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.query = nn.Parameter(torch.zeros(1, 8))
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, image: Tensor) -> Tensor:
        query = self.query.expand(image.shape[0], 8)
        query = query + self.blocks[0](query + self.trunk(image.mean((2, 3))))
        result: Tensor = self.head(query + self.blocks[1](query))
        return result


def test_the_only_reader_of_other_layers_cannot_be_removed() -> None:
    exported = export(Reader(), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=({0: Dim("batch")},))
    module = normalize(exported.module())
    found = find_branches(module, tensor_shapes(module, (3, 4, 4)))
    assert {branch.name: branch.obstacle for branch in found} == {
        "blocks.0": "other layers serve only this branch",
        "blocks.1": "",
    }


@pytest.mark.parametrize(
    ("timm", "kwargs", "names"),
    [
        ("efficientformer_l1", {"depths": (1, 1, 1, 2)}, ["stages.0.blocks.0.ls1", "stages.0.blocks.0.mlp"]),
        ("convnext_atto", {}, ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "depths": (2, 1), "num_heads": (1, 2), "embed_dim": 32},
            ["layers.0.blocks.0.attn", "layers.0.blocks.0.mlp", "layers.0.blocks.1.attn"],
        ),
    ],
)
def test_branches_of_other_families(timm: str, kwargs: dict[str, Any], names: list[str]) -> None:
    graph = trace_timm(timm, {**kwargs, "num_classes": 10})
    found = branches(graph)
    assert [branch.name for branch in found][: len(names)] == names
    shorter = remove_blocks(graph, names[1:2])
    assert cost(shorter) == sketch(graph).with_removed(names[1:2]).cost()
    assert logits(shorter).isfinite().all()
    assert verify_axes(shorter).max_error < MAX_ERROR
