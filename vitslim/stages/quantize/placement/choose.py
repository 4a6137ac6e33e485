"""Choose the fastest placement that stays close enough to the float model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vitslim.graph.edits.fake_quant import activation_scale_name
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Floor
from vitslim.stages.contract import Deployment, StageContext
from vitslim.stages.quantize.layer_noise import measure_noise
from vitslim.stages.quantize.observe import activation_quantizer
from vitslim.stages.quantize.placement.float_layers import first_that_holds, float_steps, layer_macs
from vitslim.stages.quantize.placement.forms import Form
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.training.evaluate import shown_below, sqnr_db
from vitslim.training.tasks import TaskFunctions
from vitslim.units import FLOAT_BITS


@dataclass(frozen=True)
class Placement:
    """One candidate, judged."""

    name: str
    graph: ModelGraph
    scheme: QuantScheme
    path: Path
    """Its ONNX file, which is deleted after the choice."""
    sqnr_db: float
    """SQNR of the logits of the file against the float model, on calibration images."""
    agreement: float
    images: int
    """Number of images that it was judged on."""
    latency_ms: float = math.nan
    """NaN until it is measured."""

    def holds(self, floor: Floor) -> bool:
        """Return whether the candidate keeps the floor; agreement must be below it beyond chance to fail."""
        return self.sqnr_db >= floor.sqnr_db and not shown_below(self.agreement, floor.agreement, self.images)


class PlacementSearch:
    """Searches the forms of a quantized model for the fastest candidate that keeps the floor."""

    def __init__(
        self,
        reference: Tensor,
        images: Tensor,
        floor: Floor,
        deployment: Deployment,
        context: StageContext,
        folder: Path,
        task: TaskFunctions,
    ) -> None:
        """reference: outputs (n, k) of the float model for the images (n, C, H, W). Files go into `folder`."""
        self._reference, self._images, self._floor = reference, images, floor
        self._deployment, self._context, self._folder, self._task = deployment, context, folder, task
        self._steps: dict[str, list[tuple[str, ...]]] = {}

    def choose(self, forms: Sequence[Form]) -> tuple[Placement, tuple[Placement, ...]]:
        """Return the fastest candidate that keeps the floor, and all that were measured.

        Each form has as few activations in float as keep the floor. If no form keeps it, the closest candidate is
        returned.
        """
        kept, failed = list[Placement](), list[Placement]()
        for form in forms:
            for candidate in self._search(form):
                (kept if candidate.holds(self._floor) else failed).append(candidate)
        if not kept:
            kept = sorted(failed, key=lambda candidate: -candidate.sqnr_db)[:1]
        times = self._deployment.latency({one.name: one.path for one in kept})
        measured = tuple(replace(one, latency_ms=times[one.name].median_ms) for one in kept)
        return min(measured, key=lambda one: one.latency_ms), measured

    def _search(self, form: Form) -> list[Placement]:
        """Return the candidate of a form that keeps the floor with the fewest float activations, or all that fail."""
        first = self._judge(form, ())
        if first.holds(self._floor):
            return [first]
        steps = self._float_steps(form, first.path)
        judged: dict[int, Placement] = {}

        def holds(index: int) -> bool:
            judged[index] = self._judge(form, steps[index])
            return judged[index].holds(self._floor)

        found = first_that_holds(holds, len(steps))
        return [first, *judged.values()] if found is None else [judged[found]]

    def _judge(self, form: Form, in_float: Sequence[str]) -> Placement:
        """Write a candidate, run its file on all images, and compare the outputs with those of the float model."""
        name = form.name(in_float)
        path = self._folder / f"{name}.onnx"
        self._context.progress.say(f"placement: '{name}'")
        graph, scheme = form.candidate(in_float)
        self._deployment.write(graph, path)
        found = self._deployment.outputs(path, self._images)
        return Placement(
            name,
            graph,
            scheme,
            path,
            sqnr_db=sqnr_db(self._reference, found),
            agreement=self._task.agrees(self._reference, found).float().mean().item(),
            images=len(self._images),
        )

    def _float_steps(self, form: Form, path: Path) -> list[tuple[str, ...]]:
        """Return the steps of a form, which do not depend on its attention. path: file of one of its candidates."""
        if form.activations not in self._steps:
            quantized = [site for site in form.sites.values() if site.activation_bits < FLOAT_BITS]
            quantizers = {
                site.weight: activation_quantizer(site, form.scales.get(activation_scale_name(site.weight)))
                for site in quantized
            }
            noise = measure_noise(form.float_graph, quantizers, self._context)
            self._steps[form.activations] = float_steps(noise, layer_macs(path, tuple(noise)))
        return self._steps[form.activations]
