"""What rules declare, on networks of a few lines: any cut of any axis leaves a network that runs and means the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as f

from vitslim.graph.axes import infer_axes
from vitslim.graph.edit import slice_axes
from vitslim.graph.model_graph import ModelGraph, ModelSource, Preprocessing
from vitslim.graph.normalise import normalise
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import MAX_ERROR, verify_axes

SOURCE = ModelSource("small", {}, (3, 8, 8), 5, Preprocessing((0.0,) * 3, (1.0,) * 3, "bicubic", 1.0))


class Small(nn.Module):
    """Eight features of the mean colour, something in between, and five logits of `width` features."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(width, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.between(self.first(x.mean((2, 3)))))
        return result


def graph_of(model: nn.Module) -> ModelGraph:
    exported = export(model.eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch")},), strict=False)
    return ModelGraph(normalise(exported.module()), SOURCE)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "slices from the end": (lambda h: torch.cat([h[:, :-3].tanh(), h[:, -3:]], 1), 8, 2),
    "one slice": (lambda h: h[:, 2:6], 4, 3),
    "chunk": (lambda h: h.chunk(2, 1)[0].sigmoid() * h.chunk(2, 1)[1], 4, 1),
    "split": (lambda h: torch.cat([part.relu() for part in h.split(4, 1)[::-1]], 1), 8, 1),
    "split by sizes": (lambda h: torch.cat(h.split([2, 6], 1)[::-1], 1), 8, 2),
    "stack and unbind": (lambda h: torch.stack([h, h.tanh()], 1).flatten(1), 16, 1),
    "mean square": (lambda h: h / h.square().mean(1, keepdim=True).sqrt(), 8, 1),
    "softmax": (lambda h: h.softmax(1), 8, 1),
    "groups": (lambda h: f.softmax(h.reshape(-1, 4, 2), -1).flatten(1), 8, 2),
    "filled": (lambda h: h + torch.full((h.shape[0], 8), 0.5), 8, 1),
    "repeat": (lambda h: h.repeat(1, 3), 24, 2),
    "shift": (lambda h: h.roll(1, 1), 8, 0),
    "order": (lambda h: h + torch.arange(8.0), 8, 0),
    "unknown": (lambda h: h.cumsum(1), 8, 0),
    "all pairs": (lambda h: (h.unsqueeze(2) * h.unsqueeze(1)).flatten(1), 64, 0),
    "the batch in a computed size": (lambda h: h.reshape(h.shape[0] * 2, 4).softmax(-1).reshape(h.shape[0], 8), 8, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_any_cut_runs(case: str) -> None:
    between, width, axes = CASES[case]
    torch.manual_seed(0)
    graph = graph_of(Small(between, width))
    sizes = {axis.name: axis.size for axis in graph.axes.prunable}
    assert len(sizes) == axes
    assert verify_axes(graph).max_error < MAX_ERROR
    for name, count in sizes.items():
        for keep in range(1, count + 1):
            cut = slice_axes(graph, {name: range(keep)})
            assert cut.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    every = slice_axes(graph, {name: [count - 1] for name, count in sizes.items()})
    assert every.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)


def test_frozen_axes_say_why() -> None:
    reasons = {case: graph_of(Small(*CASES[case][:2])).axes for case in ("shift", "unknown", "all pairs")}
    assert "shifted" in _of(reasons["shift"]).frozen
    assert "cumsum" in _of(reasons["unknown"]).frozen
    assert reasons["unknown"].unknown_ops == {"aten.cumsum.default": 1}
    assert "twice" in _of(reasons["all pairs"]).frozen


def _of(table: object) -> object:
    return next(axis for axis in table.axes if any(s.parameter == "first.weight" and s.dim == 0 for s in axis.sites))  # type: ignore[attr-defined]


def test_grouped_and_depthwise_convolutions_are_cut_by_groups() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1, groups=4),
        nn.GroupNorm(4, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(12, 5),
    )  # fmt: skip
    graph = graph_of(model)
    sizes = sorted(axis.size for axis in graph.axes.prunable)
    assert sizes == [2, 3, 4]
    assert verify_axes(graph).max_error < MAX_ERROR
    groups = next(axis.name for axis in graph.axes.prunable if axis.size == 4)
    cut = slice_axes(graph, {groups: [0, 2]}).module
    assert cut.get_buffer("2.running_mean").shape == (4,)
    assert cut(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_attention_without_a_scale_keeps_that_of_its_old_width() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.last = nn.Linear(3, 24), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).split(8, -1)
            result: Tensor = self.last(f.scaled_dot_product_attention(q, k, v).mean(1))
            return result

    exported = export(Attends().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch")},), strict=False)
    graph = ModelGraph(normalise(exported.module()), SOURCE)
    for node in graph.module.graph.nodes:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "scale"}
    graph.module.recompile()
    (axis,) = graph.axes.prunable
    cut = slice_axes(graph, {axis.name: range(4)})
    scales = [node.kwargs["scale"] for node in cut.module.graph.nodes if "scale" in node.kwargs]
    assert scales == [8**-0.5]


def test_a_rule_that_is_wrong_about_shapes_is_not_believed(tiny_graph: ModelGraph) -> None:
    from vitslim.graph.axes import RULES

    table = infer_axes(
        tiny_graph.module,
        tiny_graph.source.image,
        {**RULES, "aten.gelu": lambda scope, node: scope.of(node.args[0])[:-1]},
    )
    assert {axis.kind for axis in table.prunable} == {"embed", "heads", "qk", "v"}


@pytest.mark.parametrize(
    ("name", "kwargs", "kinds"),
    [
        ("vit_small_patch16_rope_224", {"depth": 1}, {"embed", "heads", "qk", "v", "mlp"}),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, {"embed", "mlp", "other"}),
        ("resnet18", {}, {"embed", "mlp", "other"}),
        ("cait_xxs24_224", {"depth": 1}, {"embed", "heads", "qk", "v", "mlp", "other"}),
    ],
)
def test_other_families_need_nothing_new(name: str, kwargs: dict[str, object], kinds: set[str]) -> None:
    graph = trace_timm(name, kwargs)
    assert {axis.kind for axis in graph.axes.prunable} <= kinds
    assert verify_axes(graph).max_error < MAX_ERROR
    halved = slice_axes(graph, {axis.name: range(max(1, axis.size // 2)) for axis in graph.axes.prunable})
    assert halved.module(torch.randn(2, *graph.source.image)).isfinite().all()
    assert graph.axes.unknown_ops == {}
