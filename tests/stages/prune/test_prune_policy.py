"""The axes that are cut and the layers that are masked, decided on a sketch, as `plan` shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitslim.graph.sketch import LayerBits, Matmul, ModelSketch, Size
from vitslim.recipe.stages import DepGraph, TwoFour
from vitslim.stages.prune.depgraph.schedule import choose_cuts
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.prune.two_four.stage import TwoFourStage

axis = Size.axis


def vit(embed: int = 192, heads: int = 3, dim: int = 64, mlp: int = 768, classes: int = 1000) -> ModelSketch:
    """A sketch of one block of a ViT."""
    inner = axis("blocks.0.heads") * axis("blocks.0.qk")
    values = axis("blocks.0.heads") * axis("blocks.0.v")
    rows = axis("tokens")

    def linear(name: str, reduce: Size, columns: Size, role: str, block: str = "blocks.0") -> Matmul:
        return Matmul(name, Size.of(1), rows, reduce, columns, f"{name}.weight", block, role)

    matmuls = (
        linear("patch_embed.proj", Size.of(768), axis("embed"), "patch_embed", ""),
        linear("blocks.0.attn.qkv", axis("embed"), inner + inner + values, "qkv"),
        linear("blocks.0.attn.proj", values, axis("embed"), "proj"),
        linear("blocks.0.mlp.fc1", axis("embed"), axis("blocks.0.mlp"), "fc1"),
        linear("blocks.0.mlp.fc2", axis("blocks.0.mlp"), axis("embed"), "fc2"),
        linear("head", axis("embed"), axis("classes"), "head", ""),
    )
    sizes = {"embed": embed, "blocks.0.heads": heads, "blocks.0.qk": dim, "blocks.0.v": dim, "blocks.0.mlp": mlp}
    kinds = {"embed": "embed"} | {name: name.rpartition(".")[2] for name in sizes if name != "embed"}
    return ModelSketch(
        axes={**sizes, "tokens": 197, "classes": classes},
        kinds={**kinds, "tokens": "tokens", "classes": "classes"},
        frozen={"tokens": "is a token position", "classes": "model output"},
        matmuls=matmuls,
        parameters={p.weight: p.reduce * p.columns for p in matmuls},
        blocks=("blocks.0",),
        token_axes={"blocks.0": "tokens"},
        prefix_tokens=1,
        factors={
            "blocks.0.heads": frozenset({"blocks.0.qk", "blocks.0.v"}),
            "blocks.0.qk": frozenset({"blocks.0.heads"}),
            "blocks.0.v": frozenset({"blocks.0.heads"}),
        },
    )


def depgraph(**keys: Any) -> DepGraph:
    return DepGraph(method="depgraph", **keys)


def two_four(*layers: str) -> TwoFourStage:
    return TwoFourStage(TwoFour(method="two-four", layers=layers or "gemm"))


def test_uniform_cuts_everything_but_heads() -> None:
    cuts = choose_cuts(vit(), depgraph())
    assert cuts.keep == {"embed": 96, "blocks.0.qk": 32, "blocks.0.v": 32, "blocks.0.mlp": 384}
    assert cuts.skipped == ()


def test_bottleneck_keeps_the_embedding() -> None:
    assert choose_cuts(vit(), depgraph(mode="bottleneck")).keep.keys() == {"blocks.0.qk", "blocks.0.v", "blocks.0.mlp"}


@pytest.mark.parametrize(("heads", "dim", "kept"), [(3, 64, 16), (4, 64, 24), (12, 64, 24), (6, 40, 16), (16, 20, 8)])
def test_head_dims_have_the_finest_step_that_the_layers_allow(heads: int, dim: int, kept: int) -> None:
    cuts = choose_cuts(vit(heads=heads, dim=dim), depgraph(pruning_ratio=0.6))
    assert cuts.keep["blocks.0.qk"] == cuts.keep["blocks.0.v"] == kept
    assert heads * kept % 16 == 0


def test_round_to_16_leaves_every_layer_to_two_four() -> None:
    sketch = DepGraphStage(depgraph(pruning_ratio=0.37)).estimate(vit(embed=384, heads=6))
    assert two_four().requires(sketch) == []
    prunable = {layer.weight for layer in sketch.linears if layer.role != "head"}
    assert prunable == two_four().estimate(sketch).sparsity.keys()


def test_an_axis_too_short_is_skipped_with_its_reason() -> None:
    cuts = choose_cuts(vit(mlp=16), depgraph())
    assert "blocks.0.mlp" not in cuts.keep
    (note,) = cuts.skipped
    assert (note.layer, note.reason) == ("blocks.0.mlp", "has 16 indices and is cut in steps of 16")


def test_a_frozen_axis_is_skipped_with_its_reason() -> None:
    sketch = vit()
    sketch = replace(sketch, frozen={**sketch.frozen, "embed": "has an operator without a rule"})
    (note,) = choose_cuts(sketch, depgraph()).skipped
    assert (note.layer, note.reason) == ("embed", "has an operator without a rule")


def test_factors_of_one_dimension_do_not_compound() -> None:
    sketch = replace(vit(), kinds={**vit().kinds, "blocks.0.heads": "other"})
    sketch = replace(sketch, axes={**sketch.axes, "blocks.0.heads": 32})
    cuts = choose_cuts(sketch, depgraph())
    assert "blocks.0.heads" not in cuts.keep
    assert [note.layer for note in cuts.skipped] == ["blocks.0.heads"]
    assert "blocks.0.qk" in cuts.skipped[0].reason


def test_nothing_to_prune_is_a_problem_with_its_reason() -> None:
    (problem,) = DepGraphStage(depgraph(pruning_ratio=0.0)).requires(vit())
    assert problem.where == "pruning_ratio"
    assert "removes none" in problem.message
    (problem,) = DepGraphStage(depgraph()).requires(vit(16, 1, 16, 16))
    assert "steps of 16" in problem.message
    (problem,) = DepGraphStage(depgraph()).requires(replace(vit(), kinds={}.fromkeys(vit().axes, "tokens")))
    assert "no axis" in problem.message


def test_pruning_after_two_four_or_quantization_is_refused() -> None:
    stage = DepGraphStage(depgraph())
    assert "sparsity pattern" in stage.requires(two_four().estimate(vit()))[0].message
    assert "before quantize" in stage.requires(vit().with_bits(["blocks.0.mlp.fc1.weight"], LayerBits(8, 8)))[0].message


def test_estimate_of_pruning_is_quadratic() -> None:
    before, after = vit().cost(), DepGraphStage(depgraph()).estimate(vit()).cost()
    assert before.params / after.params == pytest.approx(3.0, abs=0.5)


def test_gemm_is_every_layer_but_the_head() -> None:
    estimate = two_four().estimate(vit())
    assert set(estimate.sparsity) == {layer.weight for layer in vit().linears} - {"head.weight"}
    assert set(estimate.sparsity.values()) == {"2:4"}


def test_layers_that_do_not_divide_are_left_dense() -> None:
    assert "blocks.0.mlp.fc2.weight" not in two_four().estimate(vit(mlp=100)).sparsity


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("qkv", {"blocks.0.attn.qkv.weight"}),
        ("mlp.fc1", {"blocks.0.mlp.fc1.weight"}),
        ("blocks.0.mlp.fc1.weight", {"blocks.0.mlp.fc1.weight"}),
        ("proj", {"patch_embed.proj.weight", "blocks.0.attn.proj.weight"}),
        ("head", {"head.weight"}),
    ],
)
def test_layers_by_name(name: str, weights: set[str]) -> None:
    assert two_four(name).estimate(vit()).sparsity.keys() == weights


def test_a_suffix_ends_at_a_dot() -> None:
    assert two_four("v").requires(vit())[0].message == "no layer is called 'v'"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qvk", "did you mean 'qkv'?"),
        ("fc3", "did you mean 'fc"),
        ("blocks.0.mlp.fc9", "did you mean 'blocks.0.mlp.fc"),
        ("nonsense!", "allowed: fc1, fc2, head, proj, qkv"),
    ],
)
def test_an_unknown_layer_names_the_closest(name: str, hint: str) -> None:
    (problem,) = two_four("fc1", name).requires(vit())
    assert problem.where == "layers"
    assert name in problem.message
    assert problem.hint.startswith(hint)


def test_a_named_layer_that_does_not_divide_is_refused() -> None:
    (problem,) = two_four("fc2").requires(vit(mlp=100))
    assert "100 inputs are not a multiple of 16" in problem.message
    (problem,) = two_four("head").requires(vit(classes=10))
    assert "10 outputs are not a multiple of 8" in problem.message


def test_all_problems_of_layers_at_once() -> None:
    assert len(two_four("fc2", "nonsense", "other").requires(vit(mlp=100))) == 3


def test_no_layer_at_all_is_a_problem() -> None:
    (problem,) = TwoFourStage(TwoFour(method="two-four", layers=())).requires(vit())
    assert problem.message == "the list is empty"
    (problem,) = two_four().requires(vit(embed=10, mlp=10))
    assert "no layer of this model" in problem.message


def test_a_second_mask_is_refused() -> None:
    assert "already" in two_four("fc1").requires(two_four("fc2").estimate(vit()))[0].message
