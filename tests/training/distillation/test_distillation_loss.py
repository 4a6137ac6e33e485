from __future__ import annotations

import pytest
import torch

from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Features, Loss
from vitslim.training import Batch
from vitslim.training.distillation.objective import DistillationLoss
from vitslim.training.forms.taps import LogitsAndFeatures
from vitslim.training.hook import TrainingHook


def test_feature_loss_ignores_images_with_different_predictions() -> None:
    answer = LogitsAndFeatures(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), (torch.zeros(2, 3),))
    logits, features = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (torch.tensor([[2.0] * 3, [100.0] * 3]),)
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 0]), torch.arange(2))
    config = Distill(loss=Loss(hard=0, soft=0, feature=1))
    losses = DistillationLoss(config, lambda _: answer, ["blocks.1"])((logits, features), batch)
    assert {name: value.item() for name, value in losses.items()} == {"loss": 4.0, "feature_loss.blocks.1": 4.0}
    everything = config.model_copy(update={"features": Features(only_agreeing=False)})
    losses = DistillationLoss(everything, lambda _: answer, ["blocks.1"])((logits, features), batch)
    assert losses["loss"].item() == pytest.approx(5002.0)
    losses = DistillationLoss(config, lambda _: answer, ["blocks.1"], torch.tensor([0.5]))((logits, features), batch)
    assert (losses["loss"].item(), losses["feature_loss.blocks.1"].item()) == (2.0, 4.0)


def test_predicted_classes_of_the_teacher_replace_the_labels() -> None:
    answer = LogitsAndFeatures(torch.tensor([[0.0, 9.0]]), ())
    config = Distill(loss=Loss(hard=1, soft=0), labels="teacher")
    logits = torch.tensor([[0.0, 3.0]])
    losses = [
        DistillationLoss(config, lambda _: answer)(
            logits, Batch(torch.zeros(1, 1), torch.tensor([label]), torch.arange(1))
        )
        for label in (0, 1)
    ]
    assert losses[0]["loss"].item() == losses[1]["loss"].item() < 0.1


def test_a_hook_decides_whether_the_soft_loss_counts() -> None:
    class WithoutSoftLoss(TrainingHook):
        uses_soft_loss = False

    config = Distill(loss=Loss(hard=1, soft=10))
    answer = LogitsAndFeatures(torch.tensor([[0.0, 9.0]]), ())
    batch, logits = Batch(torch.zeros(1, 1), torch.tensor([0]), torch.arange(1)), torch.tensor([[2.0, 0.0]])
    without, with_it = (
        DistillationLoss(config, lambda _: answer, hook=hook)(logits, batch)["loss"].item()
        for hook in (WithoutSoftLoss(), TrainingHook())
    )
    assert without == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.labels).item())
    assert with_it > 10 * without
