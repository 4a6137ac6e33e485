"""The stage `quantize: {method: nipq}`: bits and ranges learned with noise, then trained with the real quantizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from vitslim.errors import Problem
from vitslim.graph.edits.fake_quant import activation_scale_name
from vitslim.graph.edits.quantize_attention import decomposed
from vitslim.graph.edits.read_pixels import pixel_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Nipq
from vitslim.results import LayerNote
from vitslim.stages.contract import GemmLatency, StageContext, StageResult
from vitslim.stages.quantize.calibration.prepare import read_image_as_pixels
from vitslim.stages.quantize.checks import graph_problems, model_problems
from vitslim.stages.quantize.insert import compare
from vitslim.stages.quantize.layers import quantizable_layers
from vitslim.stages.quantize.nipq.assignment import (
    assign_widths,
    insert_learned,
    learned_table,
    smallest_cost,
    uniform_bits,
)
from vitslim.stages.quantize.nipq.batch_norm import batch_norms, reestimate_batch_norms
from vitslim.stages.quantize.nipq.costs import Cost
from vitslim.stages.quantize.nipq.learning import learn
from vitslim.stages.quantize.nipq.notes import bits_notes, totals
from vitslim.stages.quantize.nipq.proxies import PROBABILITY_SCALE, activation_operands, count_elements, find_proxies
from vitslim.stages.quantize.nipq.tensors import (
    Tensors,
    attention_blocks,
    find_costs,
    find_tensors,
    with_elements,
    with_widths,
)
from vitslim.stages.quantize.notes import skipped_notes
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.training import SECONDS
from vitslim.training.distillation import train_with_teacher, weight_problems


@dataclass(frozen=True)
class NipqStage:
    """Learns the bits of weights and activations (NIPQ, Shin et al., CVPR 2023)."""

    config: Nipq
    latency: GemmLatency | None = None
    """Latency of matmuls on the backend of the target."""

    @property
    def scheme(self) -> QuantScheme:
        """The scheme without bits and sites."""
        return QuantScheme(
            first_last_bits=self.config.first_last_bits,
            skip=self.config.skip,
            symmetric=True,
            attention=self.config.attention,
            reduce_range=False,
            calibrate=self.config.calibrate,
        )

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Return the keys that do not fit the model, and a target below the smallest cost."""
        without_attention = QuantScheme(first_last_bits=self.config.first_last_bits, skip=self.config.skip)
        problems = model_problems(without_attention, sketch)
        return problems or list(_target_problems(self.config, *self._tensors_and_costs(sketch)))

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with bits that meet the target; how tensors share them depends on data."""
        tensors, costs = self._tensors_and_costs(sketch)
        after = with_widths(self.config, sketch, assign_widths(uniform_bits(tensors, costs), tensors, costs))
        return after.as_approximate() if costs else after

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Train with noise, choose the bits, train with real quantizers, and re-estimate batch norms."""
        before = sketch(graph)
        weights = quantizable_layers(graph, self.config.skip)
        prepared = read_image_as_pixels(graph.copy(), self.scheme, context, weights)
        blocks = attention_blocks(self.config, before)
        prepared = decomposed(prepared, blocks)
        tensors = find_tensors(self.config, before)
        places = activation_operands(prepared, tensors)
        tensors = with_elements(tensors, count_elements(prepared, places))
        costs = find_costs(self.config, before, tensors, self.latency)
        proxies = find_proxies(prepared, self.config, tensors, places, context)
        learned = learn(prepared, self.config, proxies, costs, context)
        widths = assign_widths(learned.bits, tensors, costs)
        quantized, sites = insert_learned(prepared, blocks, proxies, widths, learned.ends)
        rounded = compare(graph, quantized, context)
        trained, metrics = self._train(quantized, learned.metrics, context)
        changed, skipped = self._reestimate_batch_norms(quantized, context)
        table = learned_table(tensors, learned.bits, widths)
        return StageResult(
            quantized,
            changes=(learned.note, *trained, *changed, *bits_notes(quantized, sites, table)),
            skipped=(*skipped, *skipped_notes(graph, weights)),
            metrics=metrics
            | totals(self.config, tensors, learned.bits, widths, costs)
            | compare(graph, quantized, context)
            | {"before_training_calibration_sqnr_db": rounded["calibration_sqnr_db"]},
            bits=table,
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Return layers that are not quantized, scales that are not valid, and masked weights that are not zero."""
        return graph_problems(self.scheme, before, after) + weight_problems(before, after)

    def _tensors_and_costs(self, sketch: ModelSketch) -> tuple[Tensors, Sequence[Cost]]:
        tensors = find_tensors(self.config, sketch)
        return tensors, find_costs(self.config, sketch, tensors, self.latency)

    def _train(
        self, graph: ModelGraph, earlier: Mapping[str, float], context: StageContext
    ) -> tuple[tuple[LayerNote, ...], dict[str, float]]:
        """Train with real quantizers in the last epochs of the schedule, in place; return notes and all metrics."""
        first, last = self.config.train.epochs - self.config.quantized_epochs, self.config.train.epochs
        if first == last:
            return (), dict(earlier)
        with _fixed(graph, _constant_scales(graph, self.config.learn_ranges)):
            note, metrics = train_with_teacher(
                graph,
                self.config,
                context.data.train,
                context.graph_of,
                context.seed,
                context.progress,
                label="quantize: training with real quantizers",
                keep=context.keep / "quantized" if context.keep else None,
                epochs=range(first, last),
                earlier_outputs=context.outputs_of,
            )
        sums = {name: earlier[name] + metrics[name] for name in ("steps", "images", SECONDS)}
        return (note,), {**metrics, **sums, "loss_first": earlier["loss_first"]}

    def _reestimate_batch_norms(
        self, graph: ModelGraph, context: StageContext
    ) -> tuple[tuple[LayerNote, ...], tuple[LayerNote, ...]]:
        """Re-estimate batch norms in place, and return a note among the changes, or among the skipped layers."""
        norms = batch_norms(graph.module)
        if not norms:
            reason = "the model has no batch norms to re-estimate"
            return (), (LayerNote(layer="batch norms", result="skipped", reason=reason),)
        batch = self.config.train.batch
        images = context.data.train.balanced(self.config.train.images, context.seed)
        batches = images.batches(batch, shuffle_seed=context.seed)
        whole = (found for found, _ in batches if len(found) == min(batch, len(images)))
        count = reestimate_batch_norms(graph.module, islice(whole, self.config.batch_norm_batches))
        return (LayerNote(layer=f"{len(norms)} batch norms", result=f"re-estimated from {count} batches"),), ()


def _target_problems(config: Nipq, tensors: Tensors, costs: Sequence[Cost]) -> Iterator[Problem]:
    """Yield a problem for a target that the smallest widths do not meet."""
    for cost in costs:
        least = smallest_cost(tensors, cost)
        if least > cost.limit and config.target is not None:
            key, limit = config.target.limit
            message = f"got {limit:g}, but with the smallest bits of all tensors {least:.4g} are left"
            yield Problem(f"target.{key}", message, f"raise it above {least:.4g}, or allow fewer bits")


def _constant_scales(graph: ModelGraph, learn_ranges: bool) -> list[str]:
    """Return the scales that are not trained: those of probabilities and pixels, or all without `learn_ranges`."""
    scales = [name for name in graph.parameters() if name.startswith(QUANTIZER_PREFIX)]
    pixels = {activation_scale_name(weight) for weight in pixel_layers(graph)}
    return [n for n in scales if not learn_ranges or n in pixels or n.endswith(PROBABILITY_SCALE)]


@contextmanager
def _fixed(graph: ModelGraph, names: Sequence[str]) -> Iterator[None]:
    """Keep parameters out of training."""
    parameters = graph.parameters()
    for name in names:
        parameters[name].requires_grad_(False)
    try:
        yield
    finally:
        for name in names:
            parameters[name].requires_grad_(True)
