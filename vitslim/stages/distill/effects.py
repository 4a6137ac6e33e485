"""How much the logits depend on each number that a block gives out.

What the last block makes of a patch decides nothing, and its class token everything; yet in a mean over all numbers the
class token is one of two hundred, and late blocks, whose numbers are the largest, count most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.stages.contract import StageContext
from vitslim.stages.distill.teacher import tapped_teacher
from vitslim.stages.reconstruction.sensitivity import BATCH, random_gradients


def find_effects(
    teacher: ModelGraph, blocks: Sequence[str], device: torch.device, context: StageContext
) -> tuple[Tensor, ...]:
    """Of each block's features, the mean squared derivative of a logit over classes and calibration images.

    Float (...), of the shape of one image's features, on `device`. The sum of squared distances weighed by it is the
    mean squared change of the logits that they cause, to second order and where errors of different numbers have
    nothing to do with each other: the diagonal of the Gauss-Newton matrix.
    """
    images, tapped = context.data.calibration, tapped_teacher(teacher, blocks, device)
    generator = torch.Generator().manual_seed(context.seed)
    sums: list[Tensor] = []
    for batch, _ in context.progress.track(
        images.batches(images_at_once(teacher, BATCH, backward=True)), "what the teacher's logits depend on"
    ):
        _, gradients = random_gradients(tapped, batch.to(device), generator)
        found = [gradient.square().sum(dim=0) for gradient in gradients]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return tuple(one / (len(images) * teacher.source.classes) for one in sums)
