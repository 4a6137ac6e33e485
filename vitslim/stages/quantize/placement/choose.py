"""Choose the fastest placement that stays close enough to the float model.

Activations in float bring a file closer to the float model and do not make it faster. So the latency of a form without
any is a lower limit for all of its candidates: forms are searched in the order of it, and the search ends when no other
form can beat the best candidate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vitslim.graph.edits.fake_quant import activation_scale_name
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Floor
from vitslim.recipe.stages.quantize import CANDIDATES_MAX
from vitslim.stages.contract import Deployment, StageContext
from vitslim.stages.quantize.layer_noise import measure_noise
from vitslim.stages.quantize.observe import activation_quantizer
from vitslim.stages.quantize.placement.float_layers import FirstThatHolds, expected_step, float_steps, layer_macs
from vitslim.stages.quantize.placement.forms import Form
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.training.evaluate import shown_below, sqnr_db
from vitslim.training.tasks import TaskFunctions
from vitslim.units import FLOAT_BITS


@dataclass(frozen=True)
class Placement:
    """One candidate."""

    name: str
    graph: ModelGraph
    scheme: QuantScheme
    path: Path
    """Its ONNX file, which is deleted after the choice."""
    sqnr_db: float = math.nan
    """SQNR of the logits of the file against the float model, on calibration images; NaN until it is judged."""
    agreement: float = math.nan
    images: int = 0
    """Number of images that it was judged on."""
    latency_ms: float = math.nan
    """NaN until it is measured."""

    @property
    def is_judged(self) -> bool:
        """Whether its outputs were compared with those of the float model."""
        return self.images > 0

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
        self._noise: dict[str, Mapping[str, float]] = {}
        self._written: dict[str, Placement] = {}
        self._best: Placement | None = None

    def choose(self, forms: Sequence[Form]) -> tuple[Placement, tuple[Placement, ...]]:
        """Return the fastest candidate that keeps the floor, and all that were written.

        Each form has as few activations in float as keep the floor, unless CANDIDATES_MAX candidates do not suffice to
        find them. If no candidate keeps it, the closest is returned.
        """
        for form in forms:
            self._write(form, ())
        self._measure(list(self._written))
        for form in sorted(forms, key=lambda form: self._written[form.name(())].latency_ms):
            if self._best and self._written[form.name(())].latency_ms >= self._best.latency_ms:
                break
            if (found := self._search(form)) is not None:
                rivals = [self._best.name] if self._best else []
                self._measure([found.name, *rivals, *(form.name(()) for form in forms)])
                self._best = min((self._written[name] for name in (found.name, *rivals)), key=lambda p: p.latency_ms)
        if self._best is None:
            judged = [one for one in self._written.values() if one.is_judged]
            closest = max(judged, key=lambda one: one.sqnr_db)
            self._measure([closest.name])
            self._best = self._written[closest.name]
        return self._best, tuple(self._written.values())

    def _search(self, form: Form) -> Placement | None:
        """Return the candidate of a form that keeps the floor with the fewest float activations; None if there is none.

        The noise of each activation predicts where to begin.
        """
        first = self._judge(form.name(()))
        if first.holds(self._floor):
            return first
        noise = self._noise_of(form)
        steps = float_steps(noise, layer_macs(first.path, tuple(noise)))
        names: dict[int, str] = {}
        guess = expected_step(first.sqnr_db, noise, steps, self._floor.sqnr_db)
        search = FirstThatHolds(len(steps), guess)
        while (index := search.next()) is not None and len(self._written) < CANDIDATES_MAX:
            names[index] = self._write(form, steps[index]).name
            search.tell(index, self._judge(names[index]).holds(self._floor))
        return self._written[names[search.found]] if search.found in names else None

    def _write(self, form: Form, in_float: Sequence[str]) -> Placement:
        """Write the file of a candidate."""
        name = form.name(in_float)
        self._say(f"writing '{name}'")
        graph, scheme = form.candidate(in_float)
        placement = Placement(name, graph, scheme, self._folder / f"{name}.onnx")
        self._deployment.write(graph, placement.path)
        self._written[name] = placement
        return placement

    def _measure(self, names: Sequence[str]) -> None:
        """Measure files side by side."""
        times = self._deployment.latency({name: self._written[name].path for name in dict.fromkeys(names)})
        for name, found in times.items():
            self._written[name] = replace(self._written[name], latency_ms=found.median_ms)

    def _judge(self, name: str) -> Placement:
        """Run a file on all images, and compare the outputs with those of the float model."""
        started, placement = time.monotonic(), self._written[name]
        found = self._deployment.outputs(placement.path, self._images)
        self._written[name] = placement = replace(
            placement,
            sqnr_db=sqnr_db(self._reference, found),
            agreement=self._task.agrees(self._reference, found).float().mean().item(),
            images=len(self._images),
        )
        verdict = "keeps the floor" if placement.holds(self._floor) else "below the floor"
        self._say(f"'{name}' {verdict}: {placement.sqnr_db:.1f} dB, judged in {time.monotonic() - started:.0f} s")
        return placement

    def _say(self, message: str) -> None:
        """Show the number of the candidate, a message, and the best candidate so far."""
        best = f"; best so far: '{self._best.name}', {self._best.latency_ms:.3g} ms" if self._best else ""
        self._context.progress.say(f"placement, {len(self._written)} of at most {CANDIDATES_MAX}: {message}{best}")

    def _noise_of(self, form: Form) -> Mapping[str, float]:
        """Return the noise of each quantized activation, which does not depend on the attention of the form."""
        if form.activations not in self._noise:
            quantized = [site for site in form.sites.values() if site.activation_bits < FLOAT_BITS]
            quantizers = {
                site.weight: activation_quantizer(site, form.scales.get(activation_scale_name(site.weight)))
                for site in quantized
            }
            self._noise[form.activations] = measure_noise(form.float_graph, quantizers, self._context)
        return self._noise[form.activations]
