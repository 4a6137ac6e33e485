from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from vitslim.data import Dataset, batches, dataset
from vitslim.progress import Silent

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Noted:
    """Images whose only pixel is their index, and a half more when they are varied; notes what was decoded."""

    decoded: list[int] = field(default_factory=list)
    workers: int = 2

    def pixels(self, index: int, variation: tuple[int, ...] | None) -> torch.Tensor:
        self.decoded.append(index)
        return torch.full((1, 1, 1), index + (0.0 if variation is None else 0.5))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * 2


def some(source: Noted, count: int = 9) -> Dataset:
    whole = Dataset("numbers", "train", source, tuple(range(count)), tuple(range(count)), (), "digest")
    return whole.subset([7, 2, 5, 1])


def seen(part: Dataset) -> list[tuple[list[float], list[int]]]:
    return [(images.flatten().tolist(), labels.tolist()) for images, labels in batches(part, 3, shuffle_seed=1)]


def test_held_images_are_the_same_and_decoded_once() -> None:
    source = Noted()
    part = some(source)
    expected = seen(part)
    held = part.held(CPU, Silent())
    source.decoded.clear()
    assert seen(held) == seen(held) == expected
    assert held[1][0].item() == 4
    assert source.decoded == []


def test_variations_of_held_images_are_drawn_by_the_source() -> None:
    part = some(Noted())
    assert seen(part.held(CPU, Silent()).varied(0)) == seen(part.varied(0)) != seen(part)


def test_a_set_that_does_not_fit_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Noted()
    monkeypatch.setattr(dataset, "KEPT_BYTES_MAX", 4 * 4 - 1)
    assert some(source).held(CPU, Silent()).source is source
    monkeypatch.setattr(dataset, "KEPT_BYTES_MAX", 4 * 4)
    assert some(source).held(CPU, Silent()).source is not source
    empty = some(source).subset([])
    assert empty.held(CPU, Silent()) is empty
