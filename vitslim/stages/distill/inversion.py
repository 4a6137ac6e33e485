"""Images of classes that a training set lacks: crops of its images, changed until the teacher sees other classes.

Model inversion (Yin et al., "Dreaming to Distill via DeepInversion", CVPR 2020) that starts from crops in place of
noise. What is added to a crop is a sum of grids of many sizes, so that large shapes form as easily as fine texture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from vitslim.data import Dataset
from vitslim.errors import InputError
from vitslim.files import write_whole
from vitslim.graph.device import move
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress
from vitslim.recipe.teaching import Inversion, Train
from vitslim.training.device import arithmetic, find_device
from vitslim.training.variation import strongly_varied

KEPT_FILE = "inverted.safetensors"
AT_ONCE = 250
"""Images that are changed together."""
FRACTIONS = (32, 16, 8, 4, 2)
"""Sides of the grids, as parts of the image's."""
SHIFT = 14
"""The teacher is shown images shifted by up to this part of their side, so that no single pixel counts."""


def with_inverted(
    dataset: Dataset, teacher: ModelGraph, config: Inversion, train: Train, seed: int, progress: Progress,
    keep: Path | None,
) -> Dataset:  # fmt: skip
    """A training set with inverted images behind it, all held on the device that trains.

    Their labels are the classes that the teacher was made to see, drawn evenly from all that it knows. In the folder
    `keep` they outlive an interruption. Raises InputError where those are damaged, and for a set too large to hold.
    """
    held = dataset.held(find_device(train), progress)
    path = keep / KEPT_FILE if keep is not None else None
    if path is not None and path.exists():
        pixels, labels = _read(path)
        return held.joined(pixels, labels.tolist())
    pixels, labels = _invert(held, teacher, config, train, seed, progress)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({"pixels": pixels, "labels": labels}), "free some disk space")
    return held.joined(pixels, labels.tolist())


def inverted(teacher: Callable[[Tensor], Tensor], crops: Tensor, classes: Tensor, steps: int, lr: float) -> Tensor:
    """Images that a teacher takes for `classes`, int64 (n,), made from `crops`: both float (n, C, H, W) from 0 to 1.

    Each of the steps of Adam shows them shifted, and mirrored half of the time.
    """
    side = min(crops.shape[-2:])
    sides = [side // part for part in FRACTIONS if side >= part]
    grids = [crops.new_zeros(*crops.shape[:2], one, one).requires_grad_() for one in sides]
    optimiser = torch.optim.Adam(grids, lr)
    for _ in range(steps):
        logits = teacher(_shown(_changed(crops, grids), side // SHIFT))
        loss = functional.cross_entropy(logits.float(), classes, reduction="sum")
        for grid, gradient in zip(grids, torch.autograd.grad(loss, grids), strict=True):
            grid.grad = gradient
        optimiser.step()
    return _changed(crops, grids).detach()


def _changed(crops: Tensor, grids: list[Tensor]) -> Tensor:
    enlarged = [functional.interpolate(grid, size=crops.shape[-2:], mode="bicubic") for grid in grids]
    return torch.stack([crops, *enlarged]).sum(dim=0).clamp(0, 1)


def _shown(images: Tensor, most: int) -> Tensor:
    """Shifted by up to so many pixels, and mirrored half of the time; all alike."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    moved = images.roll((down, right), (2, 3))
    return moved.flip(3) if torch.rand(()) < 0.5 else moved


def _invert(
    held: Dataset, teacher: ModelGraph, config: Inversion, train: Train, seed: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Pixels (n, C, H, W) as the set's source gives them, and int64 (n,), on the CPU."""
    device, kind = find_device(train), held.pixels(0).dtype
    module = teacher.copy().module.eval()
    move(module, device)
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in held.source.normalisation)

    def sees(pixels: Tensor) -> Tensor:
        with arithmetic(train, device):
            return torch.as_tensor(module((pixels - mean) / std))

    found: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels = _evenly(config.images, teacher.source.classes)
        starts = held.subset(_evenly(config.images, len(held)).tolist()).batches(AT_ONCE).on(device)
        for (images, _), classes in zip(
            progress.track(starts, "inverting images"), torch.split(labels, AT_ONCE), strict=True
        ):
            crops = (strongly_varied(images) * std + mean).clamp(0, 1)
            pixels = inverted(sees, crops, classes.to(device), config.steps, config.lr)
            found.append((pixels if kind.is_floating_point else (255 * pixels).round()).to("cpu", kind))
    return torch.cat(found), labels


def _evenly(count: int, of: int) -> Tensor:
    """int64 (count,) of 0 to `of` - 1 in random order, each as often as any other or once more."""
    rounds = -(-count // of)
    return torch.cat([torch.randperm(of) for _ in range(rounds)])[:count]


def _read(path: Path) -> tuple[Tensor, Tensor]:
    try:
        tensors = load_file(path)
        return tensors["pixels"], tensors["labels"]
    except (SafetensorError, KeyError) as error:
        raise InputError(f"the kept images '{path}' are damaged", "run again with --fresh") from error
