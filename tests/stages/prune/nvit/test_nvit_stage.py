"""NViT on a two-block ViT: budgets, snapshots, training steps, resume, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from vitslim.errors import StageError
from vitslim.graph.edits import RemoveBlocks
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.recipe.stages import Budget, Groups, Nvit
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.nvit.pruner import Pruner
from vitslim.stages.prune.nvit.stage import NvitStage
from vitslim.training import checkpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TRAIN = Train(epochs=3, batch=16, images=160, lr=1e-3)
Run = Callable[..., StageResult]


def stage_of(**keys: Any) -> NvitStage:
    return NvitStage(
        Nvit(**{"method": "nvit", "budget": Budget(macs=0.6), "group": Groups(heads=1), "interval": 2, "per_step": 64,
                "teacher": "none", "loss": Loss(hard=1, soft=0), "train": TRAIN, **keys})
    )  # fmt: skip


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=16)


@pytest.fixture
def run(tiny_graph: ModelGraph, context: StageContext) -> Run:
    """Prune the two-block ViT; checks the postconditions of the stage, and that the result runs."""

    def prune(**keys: Any) -> StageResult:
        stage = stage_of(**keys)
        result = stage.apply(tiny_graph, context)
        assert stage.ensures(tiny_graph, result.graph) == []
        with torch.no_grad():
            assert result.graph.module(IMAGES).shape == (2, 10)
        return result

    return prune


def share(before: ModelGraph, after: ModelGraph, key: str = "macs") -> float:
    return float(getattr(sketch(after).cost(), key) / getattr(sketch(before).cost(), key))


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"allocation": "published"}, "macs"),
        ({"allocation": "solver"}, "macs"),
        ({"allocation": "solver", "budget": Budget(params=0.5), "steps": 2}, "params"),
        ({"allocation": "published", "budget": Budget(params=0.7), "eta": 0.0}, "params"),
    ],
)
def test_a_budget_is_met(tiny_graph: ModelGraph, run: Run, keys: dict[str, Any], key: str, tmp_path: Path) -> None:
    result = run(**keys)
    limit = keys.get("budget", Budget(macs=0.6)).limit[1]
    reached = share(tiny_graph, result.graph, key)
    assert 0.7 * limit < reached <= limit
    assert result.metrics[f"{key}_share"] == pytest.approx(reached)
    assert {note.result for note in result.skipped} == set()
    assert result.widths is not None
    assert result.widths.blocks[1].share_before == pytest.approx(0.45, abs=0.05)
    save_graph(result.graph, tmp_path)
    assert torch.equal(load_graph(tmp_path).module(IMAGES), result.graph.module(IMAGES))


def test_the_last_published_step_removes_only_as_much_as_the_budget_needs(tiny_graph: ModelGraph, run: Run) -> None:
    """The second step alone could remove everything; groups of one unit come close to the budget."""
    result = run(per_step=100_000, eta=0.0, update_weights=False, group=Groups(embed=1, heads=1, qk=1, v=1, mlp=1))
    assert result.metrics["pruning_steps"] == 2
    assert 0.57 < share(tiny_graph, result.graph) <= 0.6


def test_snapshots_meet_their_targets_in_one_run(tiny_graph: ModelGraph, run: Run) -> None:
    result = run(budget=Budget(macs=0.4), snapshots={"large": 0.8, "medium": 0.6}, per_step=16)
    found = {name: share(tiny_graph, one.graph) for name, one in result.snapshots.items()}
    assert found["medium"] <= 0.6 < found["large"] <= 0.8
    assert share(tiny_graph, result.graph) <= 0.4
    assert found["large"] == pytest.approx(result.snapshots["large"].metrics["macs_share"])


@pytest.mark.parametrize("allocation", ["solver", "published"])
def test_equal_steps_pass_through_the_snapshots(tiny_graph: ModelGraph, run: Run, allocation: str) -> None:
    result = run(allocation=allocation, budget=Budget(macs=0.4), snapshots={"large": 0.8}, steps=2, eta=0.0)
    assert result.metrics["pruning_steps"] == 3  # 0.8, half of the way at 0.7, and 0.4
    assert 0.7 < share(tiny_graph, result.snapshots["large"].graph) <= 0.8


def test_without_updates_the_kept_weights_do_not_change(tiny_graph: ModelGraph, run: Run) -> None:
    result = run(update_weights=False)
    before = tiny_graph.parameters()
    kept = next(edit.kept for edit in result.graph.edits if hasattr(edit, "kept"))  # type: ignore[attr-defined]
    embed = list(kept.get("embed", range(64)))
    assert torch.equal(result.graph.parameters()["blocks.0.norm1.bias"], before["blocks.0.norm1.bias"][embed])
    assert result.graph.parameters()["cls_token"].flatten().equal(before["cls_token"].flatten()[embed])


def test_a_worthless_branch_is_removed(tiny_graph: ModelGraph, run: Run) -> None:
    with torch.no_grad():
        for name in ("weight", "bias"):
            tiny_graph.parameters()[f"blocks.1.mlp.fc2.{name}"].zero_()
    result = run(allocation="solver", update_weights=False, budget=Budget(macs=0.75))
    assert [edit.names for edit in result.graph.edits if isinstance(edit, RemoveBlocks)] == [("blocks.1.mlp",)]
    assert "blocks.1.mlp" not in {note.layer for note in result.changes if note.result != "removed"}
    kept = run(allocation="solver", update_weights=False, budget=Budget(macs=0.75), remove_blocks=False)
    assert not any(isinstance(edit, RemoveBlocks) for edit in kept.graph.edits)


def test_the_ablation_without_latency_credit_runs(run: Run) -> None:
    assert run(eta=0.0).metrics["pruning_steps"] >= 1


def test_one_training_step_equals_one_by_hand(tiny_graph: ModelGraph, context: StageContext) -> None:
    """Before the first pruning step the loop is AdamW on the hard loss."""
    train = Train(epochs=1, batch=16, images=32, lr=1e-3, warmup=0.0)
    hand = tiny_graph.copy()
    images = context.data.train.balanced(32, 0)
    loader = images.batches(16, shuffle_seed=1_000_003)
    decays = [w for w in hand.parameters().values() if w.ndim > 1]
    others = [w for w in hand.parameters().values() if w.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decays, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
                                  lr=1e-3)  # fmt: skip
    pixels, labels = next(iter(loader))
    cross_entropy(hand.module(pixels), labels).backward()
    torch.nn.utils.clip_grad_norm_(hand.module.parameters(), 1.0)
    optimizer.step()

    seen: dict[str, torch.Tensor] = {}

    class Stop(Exception):
        pass

    def after(self: Pruner, step: int) -> bool:
        assert step == 1
        seen.update({name: weight.detach().clone() for name, weight in self.parameters.items()})
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pruner, "after_update", after)
        with pytest.raises(Stop):
            stage_of(train=train).apply(tiny_graph, context)
    for name, weight in hand.parameters().items():
        assert torch.allclose(seen[name], weight, atol=1e-6), name


def test_the_soft_loss_counts_from_the_first_pruning_step_on(tiny_graph: ModelGraph, context: StageContext) -> None:
    after, seen = Pruner.after_update, list[bool]()

    def record(self: Pruner, step: int) -> bool:
        seen.append(self.uses_soft_loss)
        return after(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pruner, "after_update", record)
        stage_of(interval=3, per_step=256).apply(tiny_graph, context)
    assert seen[:4] == [False, False, False, True]


class Killed(Exception):
    pass


def test_an_interrupted_run_ends_with_the_same_bits(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"budget": Budget(macs=0.4), "snapshots": {"large": 0.7}, "per_step": 16}
    whole = stage_of(**keys).apply(tiny_graph, context)
    monkeypatch.setattr(checkpoint, "INTERVAL_S", -1.0)
    after = Pruner.after_update

    def killed(self: Pruner, step: int) -> bool:
        if step == 7:
            raise Killed
        return after(self, step)

    keeping = replace(context, keep=tmp_path / "keep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pruner, "after_update", killed)
        with pytest.raises(Killed):
            stage_of(**keys).apply(tiny_graph, keeping)
    resumed = stage_of(**keys).apply(tiny_graph, keeping)
    assert resumed.metrics["steps"] == whole.metrics["steps"] > 7
    for first, second in ((whole, resumed), (whole.snapshots["large"], resumed.snapshots["large"])):
        assert first.graph.edits == second.graph.edits
        assert torch.equal(first.graph.module(IMAGES), second.graph.module(IMAGES))


def test_a_budget_that_training_does_not_meet_names_what_was_reached(
    tiny_graph: ModelGraph, context: StageContext
) -> None:
    with pytest.raises(StageError, match=r"budget of 0.3 of the MACs was not met: 0\.\d+ remained after 1 pruning"):
        stage_of(budget=Budget(macs=0.3), interval=20, per_step=16).apply(tiny_graph, context)


def test_an_unreachable_budget_names_what_can_be_reached(tiny_graph: ModelGraph) -> None:
    (problem,) = stage_of(budget=Budget(macs=0.01)).requires(sketch(tiny_graph))
    assert problem.where == "budget.macs"
    assert "0.01 of the MACs cannot be reached: 0.0" in problem.message


def test_structures_that_the_model_lacks_are_a_problem(tiny_graph: ModelGraph) -> None:
    (problem,) = stage_of(structures=("heads",), group=Groups()).requires(sketch(tiny_graph))
    assert problem.where == "structures"
    assert "has 2 units and is pruned in groups of 2" in problem.message


def test_the_estimate_is_within_the_budget(tiny_graph: ModelGraph) -> None:
    found = stage_of().estimate(sketch(tiny_graph))
    assert found.data_dependent
    assert 0.4 < found.cost().macs / sketch(tiny_graph).cost().macs <= 0.6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
