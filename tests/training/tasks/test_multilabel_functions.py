"""Multi-label classification: mean average precision, losses, agreement and labels of batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vitslim.data import Dataset
from vitslim.data.source import Normalization
from vitslim.training.tasks import Predicted
from vitslim.training.tasks.multilabel import MultiLabel, mean_average_precision

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [1.0, -1.0, 0.5], [-1.0, 3.0, 0.2]])
LABELS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])


def test_mean_average_precision_is_over_the_labels_that_occur() -> None:
    """Label 0 ranks images 0, 1, 2: precisions 1 and 2/3. Label 1 ranks 2, 0, 1: 1 and 2/3. Label 2 never occurs."""
    assert mean_average_precision(LOGITS, LABELS) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(mean_average_precision(LOGITS, LABELS * 0))


def test_scores_are_precision_and_equal_sets_of_labels() -> None:
    task = MultiLabel()
    assert task.scores(Predicted(LOGITS, LABELS), None, None, None).keys() == {"map"}
    dense = LOGITS.clone()
    dense[1, 2] = -0.5
    found = task.scores(Predicted(LOGITS, LABELS), dense, None, None)
    assert found["label_agreement"] == pytest.approx(2 / 3)
    assert task.teacher_labels(LOGITS).tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    near = LOGITS.clone()
    near[0, 2] = 0.01  # the logit was 0
    assert task.agrees(LOGITS, near).tolist() == [False, True, True]
    assert task.nearly_agrees(LOGITS, near).tolist() == [True, True, True]


def test_the_hard_loss_is_binary_cross_entropy() -> None:
    expected = np.mean([[math.log1p(math.exp(-x if y else x)) for x, y in zip(*row, strict=True)]
                        for row in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)])  # fmt: skip
    task = MultiLabel()
    assert task.hard_loss(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-6)
    smoothed = task.hard_loss(LOGITS, LABELS, smoothing=1.0)
    assert smoothed.item() == pytest.approx(task.hard_loss(LOGITS, torch.full((3, 3), 0.5)).item())


def test_the_soft_loss_is_the_divergence_of_each_label() -> None:
    task, teacher = MultiLabel(), LOGITS.flip(0)
    p, q = teacher.double().sigmoid(), LOGITS.double().sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert task.soft_loss(LOGITS, teacher).item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.soft_loss(LOGITS, LOGITS, 2.0).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.slow
def test_gradients_of_sampled_labels_have_the_fisher_information() -> None:
    """The variance of the gradient at a logit is p (1 - p)."""
    outputs = LOGITS.clone().requires_grad_()
    scalars = MultiLabel().log_likelihoods(outputs, 2000, torch.Generator().manual_seed(0))
    (gradients,) = torch.autograd.grad(scalars, outputs, torch.eye(len(scalars)), is_grads_batched=True)
    p = LOGITS.sigmoid()
    torch.testing.assert_close(gradients.square().mean(dim=0), p * (1 - p), rtol=0, atol=0.03)


class Plain:
    """A source of black images."""

    workers = 0
    normalization = Normalization((0.0,), (1.0,))

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Tensor:
        return torch.zeros(1, 2, 2)

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels


def test_batches_have_zeros_and_ones_for_tuples_of_labels() -> None:
    labels = ((0, 2), (), (1,), (0, 2))
    dataset = Dataset("made", "train", Plain(), (0, 1, 2, 3), labels, ("a", "b", "c"), "")
    ((_, found),) = dataset.batches(4)
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert found.dtype == torch.float32
    assert dataset.balanced(3).labels == ((0, 2), (), (1,)) or dataset.balanced(3).labels == ((), (1,), (0, 2))
