"""`placement: auto`: the fastest candidate that keeps the floor, judged by its ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.pipeline.run.deployment import make_deployment
from vitslim.progress import Silent
from vitslim.recipe import check_order, validate
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Floor, Ptq
from vitslim.results import Measurement
from vitslim.stages.contract import Deployment, StageContext, StageResult
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.quantize.placement.float_layers import (
    FirstThatHolds,
    expected_step,
    float_steps,
    layer_macs,
)
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.units import FLOAT_BITS

LOW = Floor(sqnr_db=20.0, agreement=0.5)
IMPOSSIBLE = Floor(sqnr_db=200.0)
NO_DATA: Any = None
"""Only INT8 files for latency need images."""


@dataclass
class Recorded:
    """A deployment that records its calls. Latency is the length of the name.

    `in_torch`: all files are copies of one of the same model, and logits are those of the graph.
    """

    real: Deployment
    file: Path
    in_torch: bool = True
    graphs: dict[str, ModelGraph] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    """Latency of single candidates."""
    sign: Callable[[str], int] = lambda name: 1
    """Factor of the logits of a candidate."""

    def deployment(self) -> Deployment:
        return Deployment(self.write, self.outputs, self.write, self.latency)

    def write(self, graph: ModelGraph, path: Path) -> None:
        self.written.append(path.stem)
        self.graphs[path.stem] = graph
        if self.in_torch:
            shutil.copy(self.file, path)
        else:
            self.real.write(graph, path)

    def outputs(self, path: Path, images: Tensor) -> Tensor:
        self.judged.append(path.stem)
        if not self.in_torch:
            return self.real.outputs(path, images)
        with torch.no_grad():
            found: Tensor = self.graphs[path.stem].module(images)
        return self.sign(path.stem) * found

    def latency(self, files: Mapping[str, Path]) -> dict[str, Measurement]:
        self.measured += files
        first = next(iter(files.values()))
        (one,) = self.real.latency({"": first}).values()
        assert all(path.is_file() for path in files.values())
        return {name: one.model_copy(update={"median_ms": float(self.lengths.get(name, len(name)))}) for name in files}


def recipe(**report: Any) -> Any:
    return validate(
        {
            "name": "placement",
            "model": {"timm": "vit_tiny_patch16_224"},
            "data": {"kind": "digits"},
            "stages": [{"quantize": {"method": "ptq", "placement": "auto"}}, {"export": {"profile": "ort-cpu"}}],
            "report": report,
        }
    )


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=60)


@pytest.fixture(scope="module")
def static_file(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the quantized model."""
    folder = tmp_path_factory.mktemp("static")
    data = load_data(Data(kind="digits", calibration=60), tiny_session_graph.source, seed=0)
    results: dict[str, StageResult] = {}
    context = StageContext(data, 0, Silent(), results.__getitem__, folder)
    graph = PtqStage(Ptq()).apply(tiny_session_graph, context).graph
    return export_onnx(graph, folder / "model.onnx", ORT_CPU).path


@pytest.fixture
def recorded(static_file: Path) -> Recorded:
    real = make_deployment(recipe(seconds=0.01), NO_DATA, Silent())
    assert real is not None
    return Recorded(real, static_file)


def placed(
    graph: ModelGraph, context: StageContext, recorded: Recorded, floor: Floor, **keys: Any
) -> tuple[StageResult, list[str]]:
    """Return the result of a stage with `placement: auto`, and the names of the candidates in its notes."""
    stage = PtqStage(Ptq(placement="auto", floor=floor, **keys))
    result = stage.apply(graph, replace(context, deployment=recorded.deployment()))
    assert stage.ensures(graph, result.graph) == []
    notes = [note.layer.removeprefix("placement: ") for note in result.changes if note.layer.startswith("placement: ")]
    assert notes == recorded.written and set(recorded.measured) <= set(notes)
    return result, notes


def test_the_fastest_candidate_that_keeps_the_floor_is_chosen(
    tiny_graph: ModelGraph, context: StageContext, recorded: Recorded
) -> None:
    recorded.in_torch = False
    result, names = placed(tiny_graph, context, recorded, LOW)
    assert names == ["static", "dynamic"]
    chosen, other = [note for note in result.changes if note.layer.startswith("placement: ")]
    assert (chosen.layer, chosen.reason) == ("placement: static", "chosen") and "dB" in chosen.result
    # The static candidate keeps so low a floor without float activations, so that no slower one is judged.
    assert other.reason.startswith("not judged") and "ms" in other.result and "dB" not in other.result
    assert list(context.workdir.iterdir()) == []
    fixed = PtqStage(Ptq()).apply(tiny_graph, context).graph
    assert result.graph.edits == fixed.edits
    assert all(torch.equal(x, fixed.module.state_dict()[n]) for n, x in result.graph.module.state_dict().items())


def test_attention_is_tried_in_float_too(tiny_graph: ModelGraph, context: StageContext, recorded: Recorded) -> None:
    names = ["static", "static with attention", "dynamic", "dynamic with attention"]
    result, measured = placed(tiny_graph, context, recorded, Floor(sqnr_db=15.0, agreement=0.5), attention=True)
    assert measured == names and recorded.judged == ["static"]
    assert not sketch(result.graph).attention_bits  # the shortest name is the fastest
    assert not any(note.layer.endswith(".attention") for note in result.changes)


@pytest.mark.slow
def test_group_wise_weights_keep_their_scales_and_zero_points(
    tiny_graph: ModelGraph, context: StageContext, recorded: Recorded
) -> None:
    result, _ = placed(tiny_graph, context, recorded, IMPOSSIBLE, bits=4, group_size=16)
    assert any("no candidate reaches 200 dB" in note.reason for note in result.changes)
    grouped = [site for site in quantizer_sites(result.graph).values() if site.group_size]
    assert all(site.integer_scales for site in grouped) and any(s.activation_bits == FLOAT_BITS for s in grouped)
    path = context.workdir / "model.onnx"
    recorded.real.write(result.graph, path)
    assert inspect(path).violations == ()


def test_a_candidate_is_judged_by_its_file(tiny_graph: ModelGraph, context: StageContext, recorded: Recorded) -> None:
    recorded.sign = lambda name: 1 if " in float" in name else -1
    result, names = placed(tiny_graph, context, recorded, LOW)
    assert names[:2] == ["static", "dynamic"] and all(name.endswith(" in float") for name in names[2:])
    # The static candidate with float activations has a longer name than the dynamic one without, which is below the
    # floor: both forms are searched.
    assert {name.split(",")[0] for name in names[2:]} == {"static", "dynamic"}
    floats = [site for site in quantizer_sites(result.graph).values() if site.activation_bits == FLOAT_BITS]
    reasons = {note.layer: note.reason for note in result.changes}
    assert reasons[f"placement: static, {len(floats)} in float"] == "chosen"
    assert reasons["placement: static"] == reasons["placement: dynamic"] == "below the floor"
    assert {reasons[site.weight] for site in floats} == {"chosen by `placement: auto`"}


def test_a_form_that_is_slower_without_float_activations_is_not_searched(
    tiny_graph: ModelGraph, context: StageContext, recorded: Recorded
) -> None:
    recorded.sign = lambda name: -1 if name == "static" else 1
    recorded.lengths = {"dynamic": 100}
    result, names = placed(tiny_graph, context, recorded, LOW)
    assert "dynamic" in names and "dynamic" not in recorded.judged
    assert any(note.reason == "chosen" and note.layer.startswith("placement: static, ") for note in result.changes)


def test_files_run_in_the_batch_that_is_measured(tiny_graph: ModelGraph, context: StageContext, tmp_path: Path) -> None:
    """The range of a dynamic activation is that of its batch, so other batches have other logits."""
    graph = PtqStage(Ptq(activations="dynamic")).apply(tiny_graph, context).graph
    images = torch.stack([context.data.calibration[i][0] for i in range(6)])
    export_onnx(graph, tmp_path / "model.onnx", ORT_CPU)
    found = {}
    for batch in (1, 3):
        deployment = make_deployment(recipe(batches=[batch, 2]), NO_DATA, Silent())
        assert deployment is not None
        found[batch] = deployment.outputs(tmp_path / "model.onnx", images)
        parts = [deployment.outputs(tmp_path / "model.onnx", part) for part in torch.split(images, batch)]
        assert torch.equal(found[batch], torch.cat(parts))
    assert found[1].shape == found[3].shape and not torch.equal(found[1], found[3])


def test_layers_of_most_noise_for_their_cost_are_float_first() -> None:
    noise = {"harmless": 0.0, "harmful": 0.5, "cheap": 0.2, "free": 0.1}
    costs = {"harmless": 35, "harmful": 45, "cheap": 9, "free": 1}
    # Half of all MACs has no room for the harmful one after the first two, but for the harmless one.
    assert float_steps(noise, costs, (0.0, 0.05, 0.12, 0.5, 1.0)) == [
        ("free",), ("free", "cheap"), ("free", "cheap", "harmless"), ("free", "cheap", "harmful", "harmless")
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_search_finds_the_first_that_holds_and_a_good_guess_needs_two_trials(count: int) -> None:
    for first in range(count + 1):
        for guess in range(count):
            search, tried = FirstThatHolds(count, guess), list[int]()
            while (index := search.next()) is not None:
                tried.append(index)
                search.tell(index, index >= first)
            assert search.found == (first if first < count else None)
            assert len(tried) == len(set(tried)) <= 2 + count.bit_length()
            assert len(tried) <= 2 or guess != first


def test_noise_predicts_the_first_step_that_reaches_the_floor() -> None:
    noise, steps = {"a": 0.006, "b": 0.003}, [("b",), ("a",), ("a", "b")]
    assert expected_step(20.0, noise, steps, 21.0) == 0  # 0.01 of noise, 0.0079 allowed
    assert expected_step(20.0, noise, steps, 23.0) == 1
    assert expected_step(20.0, noise, steps, 30.0) == 2
    assert expected_step(20.0, noise, steps, 60.0) == 2


def test_layers_with_unused_tokens_cost_less(tiny_graph: ModelGraph, static_file: Path) -> None:
    macs = layer_macs(static_file, tuple(layer_nodes(tiny_graph.module)))
    tokens, width = 17, 64
    first, last = (macs[f"blocks.{block}.mlp.fc2.weight"] for block in (0, 1))
    assert first == tokens * 4 * width * width and last * tokens == first
    assert all(macs.values())


def test_the_estimate_is_approximate(tiny_graph: ModelGraph) -> None:
    assert PtqStage(Ptq(placement="auto")).estimate(sketch(tiny_graph)).data_dependent
    assert not PtqStage(Ptq()).estimate(sketch(tiny_graph)).data_dependent


def test_it_needs_a_measured_backend(tiny_graph: ModelGraph, context: StageContext) -> None:
    assert check_order(recipe())[0] == check_order(recipe(backends=["openvino:cpu"]))[0] == []
    for backends in ([], ["sim:a100"], ["torch:cuda"]):
        (problem,) = check_order(recipe(backends=backends))[0]
        assert problem.where == "stages.0.quantize.placement"
        assert "measured backend" in problem.message and "onnxruntime:cpu" in problem.hint
    assert make_deployment(recipe(backends=["sim:a100"]), NO_DATA, Silent()) is None
    with pytest.raises(StageError, match="measured backend"):
        PtqStage(Ptq(placement="auto")).apply(tiny_graph, context)


def test_an_interruption_leaves_no_files(tiny_graph: ModelGraph, context: StageContext, recorded: Recorded) -> None:
    def interrupted(name: str) -> int:
        raise KeyboardInterrupt

    recorded.sign = interrupted
    with pytest.raises(KeyboardInterrupt):
        placed(tiny_graph, context, recorded, LOW)
    assert list(context.workdir.iterdir()) == []
