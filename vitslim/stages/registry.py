"""From a config to the stage that carries it out: one line a method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vitslim.recipe import stages as configs
from vitslim.recipe.config import StageConfig
from vitslim.results import LatencyTable
from vitslim.stages.contract import Stage
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.prune.depth.stage import DepthStage
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.prune.unstructured.stage import UnstructuredStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.qat.stage import QatStage
from vitslim.stages.token_squeeze.stage import EtpsStage


def make_stage(config: StageConfig, latency: LatencyTable | None = None) -> Stage:
    """The stage that carries out a config; `latency` is the table that its budget names."""
    handlers: dict[type, Callable[[Any], Stage]] = {
        configs.DepGraph: partial(DepGraphStage, latency=latency),
        configs.TwoFour: TwoFourStage,
        configs.Unstructured: UnstructuredStage,
        configs.Depth: DepthStage,
        configs.Distill: DistillStage,
        configs.Ptq: PtqStage,
        configs.Qat: QatStage,
        configs.Etps: EtpsStage,
        configs.Export: ExportStage,
    }
    return handlers[type(config)](config)
