from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitslim.data import DataModule, load_data
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import Data

DIGITS = Data(kind="digits", calibration=100)


@pytest.fixture
def gray_source(folder_source: ModelSource) -> ModelSource:
    return replace(folder_source, image=(1, 32, 32), classes=10)


def load(source: ModelSource, seed: int = 0) -> DataModule:
    return load_data(DIGITS, source, seed)


def test_split_is_stratified_disjoint_and_complete(gray_source: ModelSource) -> None:
    data = load(gray_source)
    assert (len(data.train), len(data.val)) == (1437, 360)
    assert sorted(data.train.indices + data.val.indices) == list(range(1797))
    shares = np.bincount(data.val.labels) / (np.bincount(data.val.labels) + np.bincount(data.train.labels))
    assert np.allclose(shares, 0.2, atol=0.01)


def test_the_run_seed_changes_the_calibration_set_but_not_the_split(gray_source: ModelSource) -> None:
    first, second = load(gray_source, seed=0), load(gray_source, seed=1)
    assert first.val.digest == second.val.digest
    assert first.train.digest == second.train.digest
    assert first.calibration.indices != second.calibration.indices


def test_calibration_is_balanced_and_from_train_only(gray_source: ModelSource) -> None:
    data = load(gray_source)
    assert set(data.calibration.indices) <= set(data.train.indices)
    assert np.bincount(data.calibration.labels).tolist() == [10] * 10


def test_images_are_normalized_and_follow_the_input_size(gray_source: ModelSource) -> None:
    train = load(gray_source).train
    images = torch.stack([train[position][0] for position in range(500)])
    assert images.shape[1:] == (1, 32, 32)
    assert abs(images.mean().item()) < 0.02
    assert abs(images.std().item() - 1) < 0.15
    color = load(replace(gray_source, image=(3, 40, 24))).train[0][0]
    assert color.shape == (3, 40, 24)
    assert torch.equal(color[0], color[2])


def test_augmentation_is_reproducible_and_keeps_the_digit_in_place(gray_source: ModelSource) -> None:
    train = load(gray_source).train
    plain, augmented = train[7][0], train.augmented(3)[7][0]
    assert torch.equal(augmented, train.augmented(3)[7][0])
    assert not torch.equal(augmented, train.augmented(4)[7][0])
    assert not torch.equal(augmented, train.augmented(3)[8][0])
    similarity = torch.corrcoef(torch.stack([plain.flatten(), augmented.flatten()]))[0, 1]
    assert 0.5 < similarity < 0.999


def test_model_with_too_few_classes_is_refused(gray_source: ModelSource) -> None:
    with pytest.raises(InputError, match="10 classes, the model has 5") as caught:
        load(replace(gray_source, classes=5))
    assert caught.value.exit_code == 5
    assert caught.value.hint
