"""`features: {distance: effect}`: features count as far as the teacher's logits move with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import Interpreter, Node

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill, Qat
from vitslim.recipe.teaching import Features, Loss, Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.effects import find_effects
from vitslim.stages.distill.features import block_outputs, feature_losses
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.quantize.qat.stage import QatStage

BY_EFFECT = Features(blocks="all", only_agreeing=False, distance="effect")
CPU = torch.device("cpu")


class Disturbed(Interpreter):
    """Runs a graph and adds noise to what one node computes."""

    def __init__(self, graph: ModelGraph, node: Node, noise: torch.Tensor) -> None:
        super().__init__(graph.module)
        self.node, self.noise = node, noise

    def run_node(self, n: Node) -> Any:
        computed = super().run_node(n)
        return computed + self.noise if n is self.node else computed


@pytest.fixture
def context(tiny_graph: ModelGraph, tmp_path: Path) -> StageContext:
    data: DataModule = load_data(Data(kind="digits", calibration=40, eval_images=60), tiny_graph.source, 0)
    return StageContext(data, 0, Silent(), {"dense": StageResult(tiny_graph)}.__getitem__, tmp_path)


@pytest.mark.parametrize("block", ["blocks.0", "blocks.1"])
def test_effects_foretell_how_far_noise_moves_the_logits(
    tiny_graph: ModelGraph, context: StageContext, block: str
) -> None:
    """On noise of independent numbers the diagonal of the Gauss-Newton matrix says all."""
    (effect,) = find_effects(tiny_graph, [block], CPU, context)
    images = next(iter(context.data.calibration.batches(40)))[0]
    torch.manual_seed(0)
    size, moved = 1e-3, []
    with torch.no_grad():
        module = tiny_graph.module.eval()
        logits = module(images)
        for _ in range(30):
            noise = size * torch.randn(40, *effect.shape)
            disturbed = Disturbed(tiny_graph, block_outputs(tiny_graph)[block], noise).run(images)
            moved.append((disturbed - logits).square().mean())
    foretold = size**2 * effect.sum()
    assert float(torch.stack(moved).mean() / foretold) == pytest.approx(1, rel=0.25)


def test_after_the_last_block_the_class_token_alone_counts(tiny_graph: ModelGraph, context: StageContext) -> None:
    first, last = find_effects(tiny_graph, ["blocks.0", "blocks.1"], CPU, context)
    assert bool((first > 0).all())
    assert bool((last[0] > 0).all())
    assert not bool(last[1:].any())


def test_effects_leave_the_teacher_as_it_was(tiny_graph: ModelGraph, context: StageContext) -> None:
    before = {name: weight.detach().clone() for name, weight in tiny_graph.parameters().items()}
    one, two = (find_effects(tiny_graph, ["blocks.0"], CPU, context)[0] for _ in range(2))
    assert torch.equal(one, two)
    for name, weight in tiny_graph.parameters().items():
        assert torch.equal(weight, before[name])
        assert weight.grad is None


def test_distances_are_weighed_and_summed() -> None:
    student, teacher = torch.zeros(2, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    effect = torch.tensor([[0.5, 0.0], [1.0, 0.25]])
    first, both = torch.tensor([True, False]), torch.tensor([True, True])
    assert feature_losses([student], [teacher], first, [effect]).tolist() == [0.5 + 9 + 4]
    assert feature_losses([student], [teacher], both, [effect]).tolist() == [(13.5 + 1.75) / 2]


@pytest.mark.parametrize("kind", [DistillStage, QatStage])
def test_training_by_effect_brings_the_logits_closer(
    tiny_graph: ModelGraph, context: StageContext, kind: type[DistillStage | QatStage]
) -> None:
    torch.manual_seed(0)
    student = tiny_graph.copy()
    with torch.no_grad():
        for name, weight in student.parameters().items():
            if name.startswith("blocks."):  # features say nothing about the head
                weight.add_(0.1 * weight.std(correction=0) * torch.randn_like(weight))
    train = Train(epochs=4, batch=16, lr=1e-3, wd=0, images=160)
    keys: dict[str, Any] = {"loss": Loss(hard=0, soft=0, feature=20), "features": BY_EFFECT, "train": train}
    by_method = {DistillStage: Distill, QatStage: lambda **these: Qat(method="qat", teacher="dense", **these)}
    stage = kind(by_method[kind](**keys))
    result = stage.apply(student, context)
    assert stage.ensures(student, result.graph) == []
    assert result.metrics["loss_last"] < 0.7 * result.metrics["loss_first"]
    images = next(iter(context.data.val.batches(60)))[0]
    with torch.no_grad():
        wanted, before, after = (one.module.eval()(images) for one in (tiny_graph, student, result.graph))
    assert (after - wanted).square().mean() < 0.7 * (before - wanted).square().mean()
    # The last block's weighed distance is the squared change of the logits themselves, but for what is not linear.
    assert result.metrics["feature_loss.blocks.1"] == pytest.approx(float((after - wanted).square().mean()), rel=0.5)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(tiny_graph: ModelGraph, context: StageContext) -> None:
    train = Train(epochs=1, batch=32, lr=1e-9, images=64, augment="strong", mix=True)
    stage = DistillStage(Distill(loss=Loss(hard=0, soft=0, feature=1), features=BY_EFFECT, train=train))
    assert stage.apply(tiny_graph, context).metrics["loss_first"] == pytest.approx(0, abs=1e-6)
