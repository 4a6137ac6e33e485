from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from vitslim.data import Dataset, batches


@dataclass(frozen=True)
class Numbers:
    """Images whose only pixel is their index."""

    workers: int = 0

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> torch.Tensor:
        return torch.full((1, 1, 1), index + (0.0 if augment_seed is None else 0.5))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


def numbers(labels: list[int], workers: int = 0) -> Dataset:
    return Dataset("numbers", "train", Numbers(workers), tuple(range(len(labels))), tuple(labels), (), "digest")


def seen(dataset: Dataset, batch: int, seed: int | None = None, drop_last: bool = False) -> list[list[int]]:
    return [images.flatten().int().tolist() for images, _ in batches(dataset, batch, seed, drop_last)]


@settings(deadline=None, max_examples=40)
@given(count=some.integers(0, 30), batch=some.integers(1, 9), workers=some.sampled_from([0, 2]))
def test_every_image_comes_once_and_in_order(count: int, batch: int, workers: int) -> None:
    dataset = numbers(list(range(count)), workers)
    assert list(chain(*seen(dataset, batch))) == list(range(count))
    assert len(batches(dataset, batch)) == -(-count // batch)


def test_shuffle_is_a_permutation_fixed_by_its_seed() -> None:
    dataset = numbers(list(range(20)), workers=2)
    first = seen(dataset, 6, seed=1)
    assert first == seen(dataset, 6, seed=1)
    assert first != seen(dataset, 6, seed=2)
    assert sorted(chain(*first)) == list(range(20))
    assert [len(part) for part in seen(dataset, 6, seed=1, drop_last=True)] == [6, 6, 6]


def test_labels_and_positions_belong_to_their_images() -> None:
    dataset = numbers([10 * number for number in range(9)]).subset([8, 2, 5, 1])
    loader = batches(dataset, 3, shuffle_seed=4)
    for positions, (images, labels) in zip(loader.positions, loader, strict=True):
        indices = images.flatten().int().tolist()
        assert labels.tolist() == [10 * index for index in indices]
        assert indices == [dataset.indices[position] for position in positions]


def test_leaving_an_iteration_early_ends_its_threads() -> None:
    for images, _ in batches(numbers([0] * 100, workers=2), 10):
        assert images.numel() == 10
        break


@given(
    labels=some.lists(some.integers(0, 4), min_size=1, max_size=40),
    count=some.integers(1, 50),
    seed=some.integers(0, 3),
)
def test_a_balanced_subset_is_as_even_as_the_classes_allow(labels: list[int], count: int, seed: int) -> None:
    dataset = numbers(labels)
    chosen = dataset.balanced(count, seed)
    assert chosen.indices == dataset.balanced(count, seed).indices
    assert len(chosen) == min(count, len(labels))
    assert list(chosen.indices) == sorted(set(chosen.indices))
    have, took = Counter(labels), Counter(chosen.labels)
    largest = max(took.values())
    assert all(took[label] == have[label] or took[label] >= largest - 1 for label in have)
    assert (chosen.digest == dataset.digest) == (len(chosen) == len(dataset))
