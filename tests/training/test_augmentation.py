"""Augmentation of whole batches: mixtures, crops and colors."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import Batch, hard_loss, train
from vitslim.training.augmentation import augment_strongly, erase, mix_images, random_crops


def test_mixup_blends_each_image_and_its_label_with_another_one() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    result, targets = mix_images(images, torch.arange(5), 6, mixup=1.0, cutmix=0.0)
    assert (result == result[:, :1, :1, :1]).all()
    assert result.shape == images.shape
    assert targets.shape == (5, 6)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(targets @ torch.arange(6.0), result[:, 0, 0, 0])
    assert (targets[:4] > 0).sum(dim=1).tolist() == [2, 2, 2, 2]
    assert len({round(share, 3) for share in targets[:4].diagonal().tolist()}) == 1  # one weight for the batch
    assert targets[4].tolist() == [0, 0, 0, 0, 1, 0]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_cutmix_blends_labels_by_the_area_of_the_rectangle() -> None:
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 16)
    result, targets = mix_images(images, torch.arange(8), 8, mixup=0.0, cutmix=1.0)
    for position, (image, target) in enumerate(zip(result, targets, strict=True)):
        assert set(image.unique().tolist()) <= {position, 7 - position}
        assert (image[0] == position).float().mean() == pytest.approx(float(target[position]))


def test_a_last_batch_of_one_image_is_not_mixed() -> None:
    image = torch.randn(1, 3, 4, 4)
    result, targets = mix_images(image, torch.tensor([2]), 3, mixup=0.8, cutmix=1.0)
    assert torch.equal(result, image)
    assert targets.tolist() == [[0, 0, 1]]


def test_mixtures_follow_the_seed_of_pytorch_and_leave_that_of_numpy() -> None:
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6)
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(mix_images(images, labels, 6, mixup=0.8, cutmix=1.0))
    assert np.random.rand() == expected
    assert all(map(torch.equal, results[0], results[1]))
    assert not torch.equal(results[0][1], results[2][1])


def test_the_hard_loss_of_mixtures_is_that_of_timm() -> None:
    logits, images = torch.randn(6, 4), torch.randn(6, 3, 4, 4)
    _, targets = mix_images(images, torch.tensor([0, 1, 2, 3, 0, 1]), 4, mixup=0.8, cutmix=0.0)
    smoothed = 0.9 * targets + 0.1 / 4
    assert hard_loss(logits, targets, 0.1).item() == pytest.approx(SoftTargetCrossEntropy()(logits, smoothed).item())


def test_mixing_needs_the_number_of_classes(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    with pytest.raises(ValueError, match="number of classes"):
        train(tiny_graph.module, some_digits, labels_only, Train(epochs=1, mixup=1.0), 0, {}, Silent())


def labels_only(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": hard_loss(logits, batch.labels)}


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_the_model_and_the_objective_see_the_same_mixtures(
    tiny_graph: ModelGraph, some_digits: Dataset, mixup: float
) -> None:
    unchanged = []

    def check(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        original = torch.stack([some_digits[position][0] for position in batch.positions.tolist()])
        unchanged.append(torch.allclose(batch.images.cpu(), original))
        with torch.no_grad():
            torch.testing.assert_close(logits, tiny_graph.module(batch.images))
        return labels_only(logits, batch)

    train(tiny_graph.module, some_digits, check, Train(epochs=1, batch=40, mixup=mixup), 0, {}, Silent(), classes=10)
    assert unchanged == [mixup == 0] * 4


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


def test_erasing_replaces_one_rectangle_of_some_images_and_leaves_the_generators() -> None:
    images = torch.zeros(64, 3, 16, 16)
    torch.manual_seed(1)
    random.seed(2)
    erased = erase(images, 0.5)
    after = torch.rand(1), random.random()
    torch.manual_seed(1)
    random.seed(2)
    assert torch.equal(erase(images, 0.5), erased)
    assert (torch.rand(1), random.random()) == after
    assert images.abs().sum() == 0
    changed = [image.abs().sum(dim=0) > 0 for image in erased if image.abs().sum() > 0]
    assert 16 <= len(changed) <= 48
    for mask in changed:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()


def test_random_operations_depend_on_the_seed_and_the_index_alone(some_digits: Dataset) -> None:
    augmented = some_digits.rand_augmented()
    assert torch.equal(augmented.pixels(3), some_digits.pixels(3))
    versions = {seed: [augmented.augmented(seed).pixels(place) for place in range(8)] for seed in (0, 1)}
    assert all(map(torch.equal, versions[0], [augmented.augmented(0).pixels(place) for place in range(8)]))
    assert not all(map(torch.equal, versions[0], versions[1]))
    assert not all(map(torch.equal, versions[0], [some_digits.augmented(0).pixels(place) for place in range(8)]))
    assert {(one.shape, one.dtype) for one in versions[0]} == {(some_digits.pixels(0).shape, torch.float32)}


def test_repeated_augmentation_shows_each_image_of_a_batch_several_times(
    tiny_graph: ModelGraph, some_digits: Dataset
) -> None:
    seen: list[Batch] = []

    def record(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch)
        return {"loss": hard_loss(logits, batch.labels)}

    config = Train(epochs=1, batch=32, augment="light", repeated_augmentation=2)
    metrics = train(tiny_graph.module, some_digits, record, config, 0, {}, Silent())
    assert metrics["steps"] == 5
    for batch in seen:
        first, second = batch.positions.chunk(2)
        assert torch.equal(first, second)
        assert not torch.equal(*batch.images.chunk(2))
    assert len(torch.cat([batch.positions for batch in seen]).unique()) == 80
