"""Training images that show a student more than the classes of their folder.

A teacher has much to say of what no image of a folder of ten classes shows. One step against the gradient of the
teacher's loss (Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 4) towards a
class drawn from all that it knows changes what its blocks compute, and the student sees the same image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.device import move
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.teaching import Taught
from vitslim.training.device import find_device


def perturber(teacher: ModelGraph, config: Taught) -> Callable[[Tensor], Tensor]:
    """A function that perturbs batches of normalized images, float (b, C, H, W), on the device that trains."""
    module = teacher.copy().module.eval().requires_grad_(False)
    move(module, find_device(config.train))
    sees = torch.compile(module, dynamic=False) if config.train.compile else module
    return lambda images: perturbed(images, sees, config.perturb)


def perturbed(images: Tensor, teacher: Callable[[Tensor], Tensor], most: float) -> Tensor:
    """Images moved towards classes drawn evenly from those of `teacher`, which gives logits (b, classes).

    float (b, C, H, W) before and after. What is added to an image has a standard deviation drawn evenly from 0 to
    `most`; an image that the teacher's loss does not depend on stays.
    """
    with torch.enable_grad():
        shown = images.detach().requires_grad_()
        logits = teacher(shown).float()
        classes = torch.randint(logits.shape[1], (len(images),)).to(images.device, non_blocking=True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, classes, reduction="sum"), shown)
    spread = gradient.flatten(start_dim=1).std(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
    size = most * torch.rand(len(images)).to(spread, non_blocking=True) / spread
    return images - size.view(-1, 1, 1, 1) * gradient
