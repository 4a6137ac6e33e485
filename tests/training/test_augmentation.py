"""Augmentation of whole batches: mixtures, crops and colors."""

from __future__ import annotations

import pytest
import torch

from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import Batch, hard_loss, train
from vitslim.training.augmentation import augment_strongly, mixup, random_crops


def test_mixtures_lie_between_an_image_and_its_neighbor() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    result = mixup(images)
    assert result.shape == images.shape
    assert (result == result[:, :1, :1, :1]).all()
    lower, upper = torch.minimum(images, images.roll(1, 0)), torch.maximum(images, images.roll(1, 0))
    assert ((result >= lower) & (result <= upper)).all()
    assert len({round(float(x - low), 3) for x, low in zip(result[:, 0, 0, 0], lower[:, 0, 0, 0], strict=True)}) == 4


@pytest.mark.parametrize("mix", [False, True])
def test_the_model_and_the_objective_see_the_same_mixtures(
    tiny_graph: ModelGraph, some_digits: Dataset, mix: bool
) -> None:
    unchanged = []

    def check(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        original = torch.stack([some_digits[position][0] for position in batch.positions.tolist()])
        unchanged.append(torch.allclose(batch.images.cpu(), original))
        with torch.no_grad():
            torch.testing.assert_close(logits, tiny_graph.module(batch.images))
        return {"loss": hard_loss(logits, batch.labels)}

    train(tiny_graph.module, some_digits, check, Train(epochs=1, batch=40, mix=mix), 0, {}, Silent())
    assert unchanged == [not mix] * 4


def test_strong_augmentation_crops_and_changes_colors() -> None:
    """On an image that is a ramp from -1 to 1 along each side, a crop shows a part of both ramps."""
    ramp = torch.linspace(-1, 1, 32)
    across, down = ramp.expand(32, 32), ramp[:, None].expand(32, 32)
    images = torch.stack([across, down, torch.zeros(32, 32)]).expand(200, -1, -1, -1).contiguous()
    torch.manual_seed(0)
    plain = random_crops(images)
    assert plain.abs().max() <= 1
    width, height = (plain[:, c].amax((1, 2)) - plain[:, c].amin((1, 2)) for c in (0, 1))
    area = width * height / 4
    assert 0.08 < area.min() < 0.15
    assert area.max() > 0.9
    flipped = plain[:, 0, 0, 0] > plain[:, 0, 0, -1]
    assert 70 < flipped.sum() < 130
    assert not (plain[:, 1, 0, 0] > plain[:, 1, -1, 0]).any()
    torch.manual_seed(0)
    augmented = augment_strongly(images)
    assert augmented.shape == images.shape
    assert not torch.allclose(augmented, plain, atol=0.05)
    spread = augmented.flatten(1).std(dim=1) / plain.flatten(1).std(dim=1)
    assert 0.3 < spread.min() < 0.8
    assert 1.2 < spread.max() < 2
