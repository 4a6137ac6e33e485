"""Lightning Fabric on one device, or on one device for each rank."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from vitslim.ranks import launched_ranks, rank_count
from vitslim.recipe.train import Train
from vitslim.training.device import find_precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""Names of Fabric by those of a recipe."""
TIMEOUT = timedelta(days=1)
"""Longest time that a rank waits for the others: rank 0 may measure for hours. Lost ranks are noticed at once."""


def make_fabric(config: Train, device: torch.device) -> Fabric:
    """Return the engine for a device; with several ranks, gradients are averaged over them."""
    # The import takes a second, which commands that do not train should not spend.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    precision = PRECISIONS[find_precision(config, device)]
    if rank_count() == 1:
        index = [device.index or 0] if device.type == "cuda" else 1
        environment = LightningEnvironment()
        return Fabric(accelerator=device.type, devices=index, precision=precision, plugins=[environment])  # type: ignore[arg-type]
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    # Which parameters have gradients depends on the loss and on the stage. Exported graphs have no buffers that change.
    strategy = DDPStrategy(timeout=TIMEOUT, find_unused_parameters=True, forward_sync_buffers=False)
    fabric = Fabric(
        accelerator=device.type, devices=local, num_nodes=launched_ranks() // local, precision=precision,  # type: ignore[arg-type]
        strategy=strategy, plugins=[TorchElasticEnvironment()],
    )  # fmt: skip
    fabric.launch()
    return fabric
