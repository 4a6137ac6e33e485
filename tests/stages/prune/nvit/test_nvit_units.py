"""Zeroed units against units that are cut, and the axes that are pruned together."""

from __future__ import annotations

import pytest
import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.recipe.stages import Budget, Groups, Nvit
from vitslim.stages.prune.nvit.saliency import linked_parameters
from vitslim.stages.prune.nvit.structures import find_structures, misaligned_layers
from vitslim.stages.prune.nvit.units import Units, cut_units, parameter_masks

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def zeroed(graph: ModelGraph, units: Units, dead: tuple[str, ...] = ()) -> ModelGraph:
    """Return a copy in which the removed units are zero."""
    found = graph.copy()
    linked = linked_parameters([graph.axes[axis] for axis in units.alive], graph.parameters())
    with torch.no_grad():
        for name, mask in parameter_masks(linked, units.alive, graph.parameters(), dead).items():
            found.parameters()[name].mul_(mask)
    return found


def units_without(graph: ModelGraph, axis: str, *lost: int) -> Units:
    alive = torch.ones(graph.axes[axis].size, dtype=torch.bool)
    alive[list(lost)] = False
    return Units({axis: alive})


@pytest.mark.parametrize(
    ("axis", "lost"),
    [("blocks.0.heads", (1,)), ("blocks.1.qk", (0, 7)), ("blocks.0.v", (5,)), ("blocks.1.mlp", (3, 9))],
)
def test_zeroed_units_are_units_that_are_cut(tiny_graph: ModelGraph, axis: str, lost: tuple[int, ...]) -> None:
    units = units_without(tiny_graph, axis, *lost)
    zeros = zeroed(tiny_graph, units)
    cut = cut_units(zeros, units, rescale_norms=True)
    assert cut.axes[axis].size == tiny_graph.axes[axis].size - len(lost) if axis != "blocks.0.heads" else True
    assert torch.allclose(cut.module(IMAGES), zeros.module(IMAGES), atol=1e-5)
    assert not torch.allclose(cut.module(IMAGES), tiny_graph.module(IMAGES), atol=1e-4)


def test_a_branch_of_zeros_is_a_branch_that_is_removed(tiny_graph: ModelGraph) -> None:
    branch = next(one for one in sketch(tiny_graph).branches if one.name == "blocks.1.mlp")
    units = Units({}, frozenset(["blocks.1.mlp"]))
    zeros = zeroed(tiny_graph, units, branch.parameters)
    cut = cut_units(tiny_graph, units, rescale_norms=False)
    assert torch.allclose(cut.module(IMAGES), zeros.module(IMAGES), atol=1e-6)


def test_channels_of_the_embedding_leave_valid_shapes_and_rescaled_norms(tiny_graph: ModelGraph) -> None:
    units = units_without(tiny_graph, "embed", *range(16))
    zeros = zeroed(tiny_graph, units)
    plain, scaled = (cut_units(zeros, units, rescale_norms=rescale) for rescale in (False, True))
    reference = zeros.module(IMAGES)
    assert plain.parameters()["blocks.0.norm1.weight"].shape == (48,)
    norms = [one.parameters()["blocks.0.norm1.weight"] for one in (plain, scaled)]
    assert torch.allclose(norms[1], norms[0] * (64 / 48) ** 0.5)
    errors = [float((one.module(IMAGES) - reference).norm()) for one in (plain, scaled)]
    assert errors[1] < 0.5 * errors[0]


def structures(graph: ModelGraph, **group: int) -> dict[str, tuple[int, ...]]:
    config = Nvit(method="nvit", budget=Budget(macs=0.5), group=Groups(**group))
    return {one.axis: one.lengths for one in find_structures(sketch(graph), config).pruned}


def test_groups_keep_layers_fit_for_sparse_kernels(deit_tiny: ModelGraph) -> None:
    """With three heads, of which one or two may go, 3 x 8 inputs of the projection would be no multiple of 16."""
    found = structures(deit_tiny)
    assert found["blocks.0.v"] == (16, 32, 48, 64)
    assert found["blocks.0.qk"] == tuple(range(8, 65, 8))
    assert found["blocks.0.heads"] == (2, 3)
    assert found["embed"] == tuple(range(16, 193, 16))
    smallest = sketch(deit_tiny).with_sizes({axis: lengths[0] for axis, lengths in found.items()})
    assert misaligned_layers(smallest) == []


def test_an_even_number_of_heads_keeps_the_published_groups(tiny_graph: ModelGraph) -> None:
    found = structures(tiny_graph)
    assert found["blocks.0.v"] == (8, 16, 24, 32)
    assert "blocks.0.heads" not in found
    assert structures(tiny_graph, heads=1)["blocks.0.v"] == (16, 32)


def test_layers_that_sparse_kernels_do_not_take_are_listed(tiny_graph: ModelGraph) -> None:
    odd = sketch(tiny_graph).with_sizes({"blocks.0.mlp": 100})
    notes = {note.layer: note.reason for note in misaligned_layers(odd)}
    assert notes == {
        "blocks.0.mlp.fc1.weight": "100 outputs are not a multiple of 8",
        "blocks.0.mlp.fc2.weight": "100 inputs are not a multiple of 16",
    }
