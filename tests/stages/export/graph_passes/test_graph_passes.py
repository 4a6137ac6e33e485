"""Graph passes that change quantizers: the graph computes the same before and after each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitslim.data import load_data
from vitslim.graph.edits.fake_quant import FAKE_QUANT, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE, PROFILES
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.graph_passes import GRAPH_PASSES, run_graph_passes
from vitslim.stages.export.graph_passes.activations import make_activations_signed, make_activations_unsigned
from vitslim.stages.export.graph_passes.integer_weights import WeightForm, store_integer_weights, weight_storage
from vitslim.stages.quantize.ptq.stage import PtqStage


@pytest.fixture(scope="module")
def module_int8(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> ModelGraph:
    data = load_data(Data(kind="digits", calibration=40), tiny_session_graph.source, seed=0)
    results: dict[str, StageResult] = {}
    context = StageContext(data, 0, Silent(), results.__getitem__, tmp_path_factory.mktemp("int8"))
    return PtqStage(Ptq()).apply(tiny_session_graph, context).graph


@pytest.fixture
def int8(module_int8: ModelGraph) -> ModelGraph:
    """A quantized graph; the test may change it."""
    return module_int8.copy()


def logits(graph: ModelGraph) -> Tensor:
    images = torch.rand(3, *graph.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = graph.module(images)
    return found


def smallest_integers(graph: ModelGraph) -> list[int]:
    """Of the quantizers of activations."""
    layers = [node for nodes in layer_nodes(graph.module).values() for node in nodes]
    return [argument(layer, 0).args[4] for layer in layers if is_op(argument(layer, 0), FAKE_QUANT)]


def test_signed_activations_give_the_same_logits(int8: ModelGraph) -> None:
    expected = logits(int8)
    assert 0 in smallest_integers(int8)
    make_activations_signed(int8)
    assert set(smallest_integers(int8)) == {-128}
    torch.testing.assert_close(logits(int8), expected, rtol=0.05, atol=0.05)


def test_unsigned_activations_give_exactly_the_same_logits(int8: ModelGraph) -> None:
    expected = logits(int8)
    assert -128 in smallest_integers(int8)
    make_activations_unsigned(int8)
    assert set(smallest_integers(int8)) == {0}
    assert torch.equal(logits(int8), expected)


def test_integer_weights_give_exactly_the_same_logits(int8: ModelGraph) -> None:
    expected, weights = logits(int8), set(layer_nodes(int8.module))
    store_integer_weights(int8)
    assert torch.equal(logits(int8), expected)
    stored = dict(int8.module.named_buffers())
    assert {stored[name].dtype for name in weights} == {torch.int8}


@pytest.mark.parametrize(
    ("keys", "portable", "ort_cpu"),
    [
        ({}, WeightForm.DEQUANTIZE, WeightForm.DEQUANTIZE),
        ({"bits": 4}, WeightForm.DEQUANTIZE, WeightForm.WIDEN),
        ({"activations": "float"}, WeightForm.DEQUANTIZE, WeightForm.MULTIPLY),
    ],
)
def test_the_form_of_weights_follows_the_profile(
    tiny_graph: ModelGraph,
    digits_context: Callable[..., StageContext],
    keys: dict[str, object],
    portable: WeightForm,
    ort_cpu: WeightForm,
) -> None:
    graph = PtqStage(Ptq(**keys)).apply(tiny_graph, digits_context(tiny_graph)).graph  # type: ignore[arg-type]
    for profile, form in ((PORTABLE, portable), (ORT_CPU, ort_cpu)):
        copy = graph.copy()
        run_graph_passes(copy, profile)
        storage = weight_storage(copy, profile)
        assert storage.keys() == layer_nodes(graph.module).keys()
        assert {one.form for one in storage.values()} == {form}


def test_every_pass_runs_for_some_profile_and_has_a_purpose_of_its_own(int8: ModelGraph) -> None:
    for one in GRAPH_PASSES:
        assert any(one.applies(int8, profile) for profile in PROFILES.values()), one.name
    assert len({one.name for one in GRAPH_PASSES}) == len({one.purpose for one in GRAPH_PASSES}) == len(GRAPH_PASSES)
