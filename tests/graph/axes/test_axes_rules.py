"""Axis rules on networks of a few lines: after any cut of any axis a network runs and computes the same function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as f

from vitslim.graph.axes import infer_axes
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph, ModelSource, Preprocessing
from vitslim.graph.trace.normalize import normalize
from vitslim.graph.verify import verify_axes

SOURCE = ModelSource("small", {}, (3, 8, 8), 5, Preprocessing((0.0,) * 3, (1.0,) * 3, "bicubic", 1.0))


class Small(nn.Module):
    """Eight features of the mean color, an operator under test, and five logits of `width` features."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(width, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.between(self.first(x.mean((2, 3)))))
        return result


def graph_of(model: nn.Module) -> ModelGraph:
    exported = export(model.eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch")},), strict=False)
    return ModelGraph(normalize(exported.module()), SOURCE)


def _negated_from(h: Tensor, start: int) -> Tensor:
    h[:, start:] *= -1
    return h


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "slices from the end": (lambda h: torch.cat([h[:, :-3].tanh(), h[:, -3:]], 1), 8, 2),
    "one slice": (lambda h: h[:, 2:6], 4, 3),
    "chunk": (lambda h: h.chunk(2, 1)[0].sigmoid() * h.chunk(2, 1)[1], 4, 1),
    "split": (lambda h: torch.cat([part.relu() for part in h.split(4, 1)[::-1]], 1), 8, 2),
    "chunks of which the last is shorter": (lambda h: torch.cat([p.relu() for p in h.chunk(3, 1)[::-1]], 1), 8, 3),
    "in place": (lambda h: f.hardswish(h.clone(), inplace=True) + 1, 8, 1),
    "narrow": (lambda h: h.narrow(1, 2, 4), 4, 3),
    "gated linear unit": (lambda h: f.glu(h, 1), 4, 1),
    "split by sizes": (lambda h: torch.cat(h.split([2, 6], 1)[::-1], 1), 8, 2),
    "stack and unbind": (lambda h: torch.stack([h, h.tanh()], 1).flatten(1), 16, 1),
    "mean square": (lambda h: h / h.square().mean(1, keepdim=True).sqrt(), 8, 1),
    "softmax": (lambda h: h.softmax(1), 8, 1),
    "groups": (lambda h: f.softmax(h.reshape(-1, 4, 2), -1).flatten(1), 8, 2),
    "filled": (lambda h: h + torch.full((h.shape[0], 8), 0.5), 8, 1),
    "repeat": (lambda h: h.repeat(1, 3), 24, 2),
    "shift": (lambda h: h.roll(1, 1), 8, 0),
    "order": (lambda h: h + torch.arange(8.0), 8, 0),
    "cumulative sum": (lambda h: h.cumsum(1), 8, 0),
    "largest": (lambda h: h.reshape(-1, 2, 4).max(2)[0], 2, 2),
    "place of the largest": (lambda h: h + h.max(1, keepdim=True)[1] + h.argmin(1, keepdim=True), 8, 0),
    "written into a part": (lambda h: _negated_from(h.clone(), 2), 8, 2),
    "sorted": (lambda h: h.sort(1)[0], 8, 0),
    "gather": (lambda h: h.reshape(-1, 4, 2).gather(1, torch.zeros(h.shape[0], 3, 2).long()).flatten(1), 6, 1),
    "unknown": (lambda h: h.cummax(1)[0], 8, 0),
    "repeated in a row": (lambda h: h.repeat_interleave(3, 1), 24, 2),
    "tile": (lambda h: h.tile(3), 24, 2),
    "moved": (lambda h: h.reshape(-1, 2, 4).movedim(2, 1).cos().flatten(1), 8, 2),
    "grid": (lambda h: sum(torch.meshgrid(h.mean(0), h.std(0), indexing="xy")).mean(0) + h, 8, 1),  # type: ignore[attr-defined]
    "variance and mean": (lambda h: torch.cat([torch.var_mean(h.reshape(-1, 2, 4), 2)[i] for i in (0, 1)], 1), 4, 2),
    "einsum": (lambda h: torch.einsum("bhc, bhd -> bcd", *2 * [h.reshape(-1, 2, 4)]).flatten(1), 16, 1),
    "einsum over an ellipsis": (lambda h: torch.einsum("...hc,...hc->...h", *2 * [h.reshape(-1, 2, 4)]), 2, 2),
    "einsum without an arrow": (lambda h: torch.einsum("bij,kji", h.reshape(-1, 2, 4), torch.ones(3, 4, 2)), 3, 3),
    "batched product and sum": (
        lambda h: torch.baddbmm(h.reshape(-1, 2, 4), torch.ones(h.shape[0], 2, 2), h.reshape(-1, 2, 4)).flatten(1),
        8,
        2,
    ),
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
    assert verify_axes(graph).holds
    for name, count in sizes.items():
        for keep in range(1, count + 1):
            cut = slice_axes(graph, {name: range(keep)})
            assert cut.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    every = slice_axes(graph, {name: [count - 1] for name, count in sizes.items()})
    assert every.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)


def test_frozen_axes_have_a_reason() -> None:
    reasons = {case: graph_of(Small(*CASES[case][:2])).axes for case in ("shift", "unknown", "all pairs")}
    assert "rolled" in _of(reasons["shift"]).frozen
    assert "cummax" in _of(reasons["unknown"]).frozen
    assert reasons["unknown"].unknown_ops == {"aten.cummax.default": 1}
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
    assert verify_axes(graph).holds
    groups = next(axis.name for axis in graph.axes.prunable if axis.size == 4)
    cut = slice_axes(graph, {groups: [0, 2]}).module
    assert cut.get_buffer("2.running_mean").shape == (4,)
    assert cut(torch.randn(2, 3, 8, 8)).shape == (2, 5)


IMAGES: dict[str, tuple[nn.Module, int, int]] = {
    "pooling": (nn.MaxPool2d(3, 2, 1), 8, 1),
    "pixel shuffle": (nn.PixelShuffle(2), 2, 1),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 32, 1),
    "channel shuffle": (nn.ChannelShuffle(4), 8, 2),
    "transposed convolution": (nn.ConvTranspose2d(8, 6, 2, 2), 6, 2),
    "grouped transposed convolution": (nn.ConvTranspose2d(8, 4, 2, 2, groups=4), 4, 2),
    "depthwise transposed convolution": (nn.ConvTranspose2d(8, 8, 2, 2, groups=8), 8, 1),
    "patches and back": (nn.Sequential(nn.Unfold(2, stride=2), nn.Fold(8, 2, stride=2)), 8, 1),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), 8, 1),
    "upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), 8, 1),
    "padding": (nn.ZeroPad2d(1), 8, 1),
}


@pytest.mark.parametrize("case", IMAGES)
def test_any_cut_of_channels_runs(case: str) -> None:
    between, width, axes = IMAGES[case]
    torch.manual_seed(0)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(width, 5)
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 8, 1), between, nn.GELU(), *ends))
    assert not graph.axes.unknown_ops
    assert len(graph.axes.prunable) == axes
    assert verify_axes(graph).holds
    for axis in graph.axes.prunable:
        cut = slice_axes(graph, {axis.name: range(axis.size // 2)})
        assert cut.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)


def test_windows_that_slide_keep_the_channels() -> None:
    class Slides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.first(x).unfold(2, 4, 2).unfold(3, 4, 2).amax((2, 3, 4, 5)))
            return result

    graph = graph_of(Slides())
    (axis,) = graph.axes.prunable
    assert (axis.size, graph.axes.unknown_ops) == (8, {})
    assert verify_axes(graph).holds


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), pytest.param(2, True, marks=pytest.mark.slow)])
def test_an_lstm_is_cut_by_its_hidden_units_and_its_inputs(layers: int, bidirectional: bool) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.lstm = nn.LSTM(8, 6, layers, batch_first=True, bidirectional=bidirectional)
            self.last = nn.Linear(12 if bidirectional else 6, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.lstm(self.first(x.flatten(2).transpose(1, 2)))[0].mean(1))
            return result

    graph = graph_of(Recurrent())
    assert sorted(axis.size for axis in graph.axes.prunable) == [6, 8]
    assert verify_axes(graph).holds
    cut = slice_axes(graph, {axis.name: range(3) for axis in graph.axes.prunable}).module
    assert cut.get_parameter("lstm.weight_hh_l0").shape == (12, 3)
    assert cut(torch.randn(3, 3, 8, 8)).shape == (3, 5)


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
    graph = ModelGraph(normalize(exported.module()), SOURCE)
    for node in graph.module.graph.nodes:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "scale"}
    graph.module.recompile()
    axes = graph.axes.prunable
    assert len(axes) == 2
    cut = slice_axes(graph, {axis.name: range(4) for axis in axes})
    scales = [node.kwargs["scale"] for node in cut.module.graph.nodes if "scale" in node.kwargs]
    assert scales == [8**-0.5]


def test_a_rule_with_a_wrong_shape_freezes_its_axes(tiny_graph: ModelGraph) -> None:
    from vitslim.graph.axes import RULES

    table = infer_axes(
        tiny_graph.module,
        tiny_graph.source.image,
        {**RULES, "aten.gelu": lambda scope, node: scope.of(node.args[0])[:-1]},
    )
    assert {axis.kind for axis in table.prunable} == {"embed", "heads", "qk", "v"}
