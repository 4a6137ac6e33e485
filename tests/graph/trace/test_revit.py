"""ReViT: the published sizes of both variants, and a model that is built from the rule."""

from __future__ import annotations

import pytest
import torch

from vitslim.errors import UsageError
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.trace.revit import BASE, revit_blocks, revit_kwargs, revit_lengths, trace_model
from vitslim.recipe.schema import Model, Revit


@pytest.fixture(scope="module")
def widest() -> ModelSketch:
    """A uniform model that is at least as wide as every ReViT of these tests."""
    return sketch(trace_timm(BASE, dict(revit_kwargs(Revit(embed=384, variant="released")))))


@pytest.mark.parametrize(
    ("embed", "variant", "heads", "qk", "params", "gmacs"),
    [
        (384, "paper", (4, 4, 8), (16, 16, 40), "22.43", "4.534"),
        (384, "released", (10, 4, 8), (32, 16, 32), "23.12", "4.705"),
        (176, "paper", (2, 2, 4), (8, 8, 16), "4.88", "0.992"),
        (176, "released", (10, 2, 4), (16, 8, 16), "5.34", "1.135"),
    ],
)
def test_published_sizes(
    widest: ModelSketch, embed: int, variant: str, heads: tuple[int, ...], qk: tuple[int, ...], params: str, gmacs: str
) -> None:
    blocks = revit_blocks(embed, variant)
    assert tuple(blocks[i].heads for i in (0, 1, 4)) == heads
    assert tuple(blocks[i].qk for i in (0, 1, 4)) == qk
    assert [block.mlp // embed for block in blocks] == [3] * 3 + [6] * 6 + [3] * 3
    cost = widest.with_sizes(revit_lengths(Revit(embed=embed, variant=variant))).cost()  # type: ignore[arg-type]
    assert widest.tokens == 198
    assert (f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e9:.3f}") == (params, gmacs)


def test_a_model_is_built_from_the_rule() -> None:
    model = Model(revit=Revit(embed=64), kwargs={"img_size": 32, "num_classes": 10})
    graph = trace_model(model)
    sizes = {axis.name: axis.size for axis in graph.axes.axes}
    lengths = revit_lengths(Revit(embed=64))
    assert {name: sizes[name] for name in lengths} == lengths
    assert graph.module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.name == "revit-64-released"


def test_arguments_that_the_rule_sets_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot hold 'depth' with `revit`"):
        trace_model(Model(revit=Revit(embed=64), kwargs={"depth": 6}))
