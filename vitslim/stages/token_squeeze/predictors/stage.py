"""dTPS (TPS, Wei et al., CVPR 2023) and DynamicViT (Rao et al., NeurIPS 2021): predictors choose the tokens."""

from __future__ import annotations

import torch

from vitslim.errors import Problem
from vitslim.graph.edits.insert_predictors import find_predictors, insert_predictors, predictor_module
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, predictor_cuts, sketch
from vitslim.graph.training_form import KEPT_MIN, training_form
from vitslim.recipe.stages import WithPredictors
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.token_squeeze.counts import (
    Count,
    block_problems,
    count_problems,
    kept_problems,
    planned_start_counts,
    support_problems,
)
from vitslim.stages.token_squeeze.predictors.warm_start import fit, observe

FORM_ERROR_MAX = 1e-3
"""Largest difference of logits between the deployed graph and its training form, relative to the largest logit."""
FORM_TRIES = 3
"""Random images that are tried: of tokens whose scores differ by rounding only, both forms may keep another one."""


class PredictorStage:
    """Runs `token-squeeze` with `dtps` and `dynamicvit`. A later distill stage trains the predictors and the model."""

    def __init__(self, config: WithPredictors) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require attention over all tokens without position bias, and existing blocks that are not squeezed yet."""
        if problems := support_problems(sketch) or block_problems(sketch, self.config.blocks):
            return problems
        counts = self._counts(sketch)
        few = f"would keep one patch token, expected at least {KEPT_MIN}"
        return count_problems(sketch, counts) or [
            Problem("keep_rate", f"'{name}' {few}", "raise keep_rate")
            for name, count in counts.items()
            if count.after < KEPT_MIN
        ]

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with predictors, and fewer tokens from each block on. Exact."""
        kept = {name: count.after for name, count in self._counts(sketch).items() if count.after < count.before}
        return sketch.with_squeeze(predictor_cuts(sketch, kept, self.config.method))

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Insert predictors one after the other, each trained on the tokens that the earlier ones leave."""
        graph, changes, skipped = graph.copy(), [], []
        metrics: dict[str, float] = {}
        for name, count in self._counts(sketch(graph)).items():
            if count.after == count.before:
                skipped.append(LayerNote(layer=name, result="skipped", reason=f"keeps all {count.before} patch tokens"))
                continue
            observed = observe(graph, name, context.data.calibration, context.progress)
            graph = insert_predictors(graph, {name: count.after}, self.config.method)
            predictor = next(one for one in find_predictors(graph.module) if one.block == name)
            module = predictor_module(graph.module, predictor)
            found = fit(module, observed, count.after, context.seed, context.progress, f"token-squeeze: {name}")
            agreement = found["rank_agreement"]
            chosen = f"{100 * agreement:.1f} % of them are those with the highest attention"
            changes.append(
                LayerNote(layer=name, result=f"keeps {count.after} of {count.before} patch tokens", reason=chosen)
            )
            metrics |= {f"patch_tokens.{name}": float(count.after), f"rank_agreement.{name}": agreement}
        return StageResult(graph, tuple(changes), tuple(skipped), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every block keeps the planned number of tokens, and that the training form is the same model."""
        counts = self._counts(sketch(before)).items()
        problems = kept_problems(after, {name: count.after for name, count in counts if count.after < count.before})
        if not problems and find_predictors(after.module) and (error := form_error(after)) > FORM_ERROR_MAX:
            message = f"the training form of this model gives other logits (relative error {error:.2g})"
            problems.append(Problem("method", message, "use etps, which needs no training form"))
        return problems

    def _counts(self, sketch: ModelSketch) -> dict[str, Count]:
        return planned_start_counts(sketch, self.config.blocks, self.config.keep_rate, self.config.rounding)


def form_error(graph: ModelGraph) -> float:
    """Return the difference of logits between a graph and its training form, relative to the largest logit.

    The smallest of FORM_TRIES random images: it is large only if the training form computes something else.
    """
    form = training_form(graph).module.eval()
    deployed = graph.module.eval()
    images = torch.randn(FORM_TRIES, *graph.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = deployed(images), form(images)[0]
    errors = (found - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)
    return float(errors.min())
