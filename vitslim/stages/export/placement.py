"""The profile `auto`: where quantizers pay, measured. The fastest placement that stays close enough is written.

Every candidate has the weights and the scales that the quantize stage found; they differ in what the inputs of layers
become: calibrated codes, codes of each batch's own range, or float. Attention that was quantized is tried in float too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from vitslim.data import Dataset
from vitslim.errors import StageError
from vitslim.graph.edits import FakeQuantSite, QuantizeAttention
from vitslim.graph.edits.divide_tokens import divided_layers
from vitslim.graph.edits.fake_quant import (
    activation_scale_name,
    has_activation_scale,
    insert_fake_quant,
    remove_fake_quant,
)
from vitslim.graph.edits.quantize_attention import quantize_attention
from vitslim.graph.edits.read_pixels import pixel_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensors_of
from vitslim.graph.sketch import sketch
from vitslim.progress import Progress
from vitslim.recipe.stages import Floor
from vitslim.stages.contract import Measure, StageContext
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.profile import ORT_CPU
from vitslim.stages.quantize.calibration.observe import input_quantizer, solvable_layers
from vitslim.stages.quantize.noise import measure_noise
from vitslim.training.evaluate import agreement, predict, shown_below, sqnr_db
from vitslim.units import FLOAT_BITS

IN_FLOAT = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24)
"""At most these shares of the multiplications are left in float."""


@dataclass(frozen=True)
class Placement:
    """One candidate."""

    name: str
    graph: ModelGraph
    sqnr_db: float = -math.inf
    """Against the model before quantization, on calibration images."""
    agreement: float = 0.0
    images: int = 0
    """That it was judged on."""
    path: Path | None = None
    """Its file, where one was written; gone when all is chosen."""
    latency_ms: float | None = None
    """None until it was measured."""

    def holds(self, floor: Floor) -> bool:
        """Whether it is as close to the float model as it must be; predictions count where their number tells."""
        return self.sqnr_db >= floor.sqnr_db and not shown_below(self.agreement, floor.agreement, self.images)


def choose_placement(
    graph: ModelGraph, floor: Floor, images: Dataset, context: StageContext
) -> tuple[Placement, tuple[Placement, ...]]:
    """The fastest candidate that holds the floor, and all that were measured; where none holds it, the closest.

    Fidelity is first that of the graph, in batches as they are measured, which share their dynamic ranges, then that of
    the file on this processor: each form of inputs leaves as few of them in float as hold the floor in both. Those
    files are measured side by side.
    Raises StageError without a measured backend.
    """
    if context.measure is None:
        raise StageError("profile auto needs a backend that measures", "add onnxruntime:cpu to report.backends")
    progress, batch = context.progress, context.measure.batch
    reference, _ = predict(context.result("unquantized").graph.module, images, batch, progress, "auto: float model")
    held: list[Placement] = []
    others: list[Placement] = []
    with TemporaryDirectory(dir=context.workdir) as folder:
        judge = _Judge(reference, images, batch, progress, Path(folder))
        for ladder in _ladders(graph, context):
            for name, candidate in ladder:
                found = judge.graph(name, candidate)
                if found.holds(floor):
                    found = judge.file(found)
                (held if found.holds(floor) else others).append(found)
                if found.holds(floor):
                    break
        closest = sorted(others, key=lambda placement: -placement.sqnr_db)[:1]
        measured = _measured(held or [one if one.path else judge.file(one) for one in closest], context.measure)
    return min(measured, key=lambda placement: placement.latency_ms or 0.0), measured


def _ladders(graph: ModelGraph, context: StageContext) -> Iterator[Iterator[tuple[str, ModelGraph]]]:
    """For each form of inputs and of attention its candidates by name: more and more inputs in float, those first
    that harm most for what they cost.

    ONNX Runtime computes other convolutions in float either way: there codes would only cost fidelity.
    """
    plain = remove_fake_quant(graph)
    products = set(solvable_layers(plain.module))
    base = {w: site if w in products else _float(site) for w, site in quantizer_sites(graph).items()}
    scales = tensors_of(graph.module)
    forms = {"static": base}
    if any(map(has_activation_scale, base.values())):
        known = pixel_layers(graph) | divided_layers(graph)
        forms["dynamic"] = {w: site if w in known else _dynamic(site) for w, site in base.items()}
    around = {"": plain}
    for edit in (edit for edit in graph.edits if isinstance(edit, QuantizeAttention)):
        around[" with attention"] = quantize_attention(plain, edit.blocks, edit.bits, scales)
    costs = _multiplications(plain)
    for form, sites in forms.items():
        steps = floats_by_cost(_noise(plain, sites, scales, context), costs)
        for suffix, floats in around.items():
            yield _ladder(form + suffix, sites, steps, floats, scales)


def _ladder(
    form: str,
    sites: Mapping[str, FakeQuantSite],
    steps: Sequence[Sequence[str]],
    plain: ModelGraph,
    scales: Mapping[str, Tensor],
) -> Iterator[tuple[str, ModelGraph]]:
    for left in steps:
        found = {**sites} | {weight: _float(sites[weight]) for weight in left}
        name = f"{form}, {len(left)} in float" if left else form
        yield name, insert_fake_quant(plain, tuple(found.values()), scales)


def floats_by_cost(noise: Mapping[str, float], costs: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Inputs that are left in float, by the weight that multiplies them: none, then what takes most noise for the
    multiplications that it costs, up to each share of IN_FLOAT. Layers that cost next to nothing come first."""
    order = sorted(noise, key=lambda weight: noise[weight] / costs[weight], reverse=True)
    whole, found = sum(costs[weight] for weight in noise), list[tuple[str, ...]]()
    for share in IN_FLOAT:
        left, room = list[str](), share * whole
        for weight in order:
            if costs[weight] <= room:
                left.append(weight)
                room -= costs[weight]
        if tuple(left) not in found:
            found.append(tuple(left))
    return found


def _multiplications(graph: ModelGraph) -> dict[str, int]:
    """Of each layer by its weight, for an image, without those whose results nothing reads."""
    read = graph.copy()
    remove_unused_tokens(read)
    found, costs = sketch(read), Counter[str]()
    for product in found.matmuls:
        costs[product.weight] += product.macs(found.axes)
    return costs


def _noise(
    plain: ModelGraph, sites: Mapping[str, FakeQuantSite], scales: Mapping[str, Tensor], context: StageContext
) -> dict[str, float]:
    quantized = [site for site in sites.values() if site.activation_bits < FLOAT_BITS]
    quantizers = {s.weight: input_quantizer(s, scales.get(activation_scale_name(s.weight))) for s in quantized}
    return measure_noise(plain, quantizers, context)


def _float(site: FakeQuantSite) -> FakeQuantSite:
    return replace(site, activation_bits=FLOAT_BITS, zero_point=None, dynamic=False)


def _dynamic(site: FakeQuantSite) -> FakeQuantSite:
    return replace(site, activation_bits=8, zero_point=None, dynamic=True) if has_activation_scale(site) else site


class _Judge:
    """How close candidates stay to the float model, whose logits are `reference`."""

    def __init__(self, reference: Tensor, images: Dataset, batch: int, progress: Progress, folder: Path) -> None:
        self.reference, self.images, self.batch = reference, images, batch
        self.progress, self.folder = progress, folder

    def graph(self, name: str, graph: ModelGraph) -> Placement:
        """By what the graph computes."""
        return self._judged(Placement(name, graph), graph.module, name)

    def file(self, placement: Placement) -> Placement:
        """By what its file computes here."""
        path = self.folder / f"{placement.name}.onnx"
        self.progress.say(f"auto: writing '{placement.name}'")
        export_onnx(placement.graph, path, ORT_CPU)
        return self._judged(replace(placement, path=path), OnnxFile(path, exact=False), f"file '{placement.name}'")

    def _judged(self, placement: Placement, model: Callable[[Tensor], Tensor], label: str) -> Placement:
        logits, _ = predict(model, self.images, self.batch, self.progress, f"auto: {label}")
        return replace(
            placement,
            sqnr_db=sqnr_db(self.reference, logits),
            agreement=agreement(self.reference, logits),
            images=len(self.images),
        )


def _measured(placements: Sequence[Placement], measure: Measure) -> tuple[Placement, ...]:
    """The candidates with their latencies, side by side."""
    times = measure.files({one.name: one.path for one in placements if one.path is not None})
    return tuple(replace(one, latency_ms=times[one.name].median_ms) for one in placements)
