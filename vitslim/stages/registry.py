"""The stage of each config. A new method of vitslim is one line of `STAGES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitslim.recipe import stages as configs
from vitslim.recipe.stage_config import StageConfig
from vitslim.results import LatencyTable
from vitslim.stages.contract import GemmLatency, Stage
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.prune.depth.stage import DepthStage
from vitslim.stages.prune.nvit.stage import NvitStage
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.prune.unstructured.stage import UnstructuredStage
from vitslim.stages.quantize.nipq.stage import NipqStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.qat.stage import QatStage
from vitslim.stages.token_squeeze.merging.diffrate import DiffRateStage
from vitslim.stages.token_squeeze.merging.tome import TomeStage
from vitslim.stages.token_squeeze.predictors.stage import PredictorStage
from vitslim.stages.token_squeeze.stage import keep_best_stage

Handler = Callable[[Any, LatencyTable | None, GemmLatency | None], Stage]
"""Builds a stage from its config and the latencies that its cost target names, if there are any."""


def from_config(stage: Callable[[Any], Stage]) -> Handler:
    """Return the handler of a stage that needs its config alone."""
    return lambda config, *_: stage(config)


def with_table(stage: Callable[[Any, LatencyTable | None], Stage]) -> Handler:
    """Return the handler of a stage that needs its config and a latency table."""
    return lambda config, table, _: stage(config, table)


STAGES: dict[type[StageConfig], Handler] = {
    configs.DepGraph: with_table(DepGraphStage),
    configs.Nvit: with_table(NvitStage),
    configs.TwoFour: from_config(TwoFourStage),
    configs.Unstructured: from_config(UnstructuredStage),
    configs.Depth: from_config(DepthStage),
    configs.Distill: from_config(DistillStage),
    configs.Ptq: from_config(PtqStage),
    configs.Qat: from_config(QatStage),
    configs.Nipq: lambda config, _, latency: NipqStage(config, latency),
    configs.Etps: with_table(keep_best_stage),
    configs.Evit: with_table(keep_best_stage),
    configs.PruneOnly: with_table(keep_best_stage),
    configs.Dtps: from_config(PredictorStage),
    configs.DynamicVit: from_config(PredictorStage),
    configs.Tome: from_config(TomeStage),
    configs.DiffRate: from_config(DiffRateStage),
    configs.Export: from_config(ExportStage),
}


def make_stage(config: StageConfig, table: LatencyTable | None = None, latency: GemmLatency | None = None) -> Stage:
    """Return the stage that runs a config. table, latency: those that its cost target names.

    A config of a plugin makes its own stage.
    """
    handler = STAGES.get(type(config))
    if handler is not None:
        return handler(config, table, latency)
    stage: Stage = config.make_stage()
    return stage
