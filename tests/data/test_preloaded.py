from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from vitslim.data import Dataset, batches, dataset
from vitslim.progress import Silent

CPU = torch.device("cpu")


@dataclass(frozen=True)
class CountingSource:
    """Images whose only pixel is their index, plus a half if augmented; lists the decoded indices."""

    decoded: list[int] = field(default_factory=list)
    workers: int = 2

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> torch.Tensor:
        self.decoded.append(index)
        return torch.full((1, 1, 1), index + (0.0 if augment_seed is None else 0.5))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * 2


def four_of(source: CountingSource, count: int = 9) -> Dataset:
    whole = Dataset("numbers", "train", source, tuple(range(count)), tuple(range(count)), (), "digest")
    return whole.subset([7, 2, 5, 1])


def seen(part: Dataset) -> list[tuple[list[float], list[int]]]:
    return [(images.flatten().tolist(), labels.tolist()) for images, labels in batches(part, 3, shuffle_seed=1)]


def test_preloaded_images_are_the_same_and_decoded_once() -> None:
    source = CountingSource()
    part = four_of(source)
    expected = seen(part)
    preloaded = part.preloaded(CPU, Silent())
    source.decoded.clear()
    assert seen(preloaded) == seen(preloaded) == expected
    assert preloaded[1][0].item() == 4
    assert source.decoded == []


def test_augmented_images_of_a_preloaded_dataset_come_from_the_source() -> None:
    part = four_of(CountingSource())
    assert seen(part.preloaded(CPU, Silent()).augmented(0)) == seen(part.augmented(0)) != seen(part)


def test_a_dataset_that_does_not_fit_is_not_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CountingSource()
    monkeypatch.setattr(dataset, "CACHE_BYTES_MAX", 4 * 4 - 1)
    assert four_of(source).preloaded(CPU, Silent()).source is source
    monkeypatch.setattr(dataset, "CACHE_BYTES_MAX", 4 * 4)
    assert four_of(source).preloaded(CPU, Silent()).source is not source
    empty = four_of(source).subset([])
    assert empty.preloaded(CPU, Silent()) is empty
