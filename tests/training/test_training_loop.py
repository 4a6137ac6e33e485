from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from vitslim.data import Dataset
from vitslim.errors import InputError, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import Batch, Objective, checkpoint, hard_loss, predict, top1, train
from vitslim.training.forms.drop_path import with_drop_path
from vitslim.training.forms.recomputation import with_recomputation


def labels_only(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": hard_loss(logits, batch.labels), "mean_logit": logits.mean()}


def trained(graph: ModelGraph, dataset: Dataset, seed: int = 0, **config: Any) -> dict[str, float]:
    masks = graph.masks
    return train(graph.module, dataset, labels_only, Train(**config), seed, masks, Silent())


def test_training_learns_and_reports_its_losses(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    metrics = trained(tiny_graph, some_digits, epochs=25, batch=32, lr=3e-3)
    assert metrics["steps"] == 125
    assert metrics["images"] == 25 * 160
    assert metrics["loss_first"] > 2.0
    assert metrics["loss_last"] < 1.5
    assert not tiny_graph.module.training
    assert top1(*predict(tiny_graph.module, some_digits, 64, Silent(), "")) > 0.5


@pytest.mark.parametrize("augment", ["none", "light"])
def test_equal_seeds_give_equal_weights(tiny_graph: ModelGraph, some_digits: Dataset, augment: str) -> None:
    graphs = [tiny_graph.copy() for _ in range(3)]
    for graph, seed in zip(graphs, (0, 0, 1), strict=True):
        torch.rand(1)
        trained(graph, some_digits, seed, epochs=1, lr=1e-3, augment=augment)
    first, same, other = ([weight.detach() for weight in graph.parameters().values()] for graph in graphs)
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))


def test_default_training_is_plain_adamw_on_shuffled_batches(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    """Bit for bit: no default key draws random numbers or changes labels, gradients or weights."""
    expected = tiny_graph.copy()
    weights = list(expected.parameters().values())
    groups = [[one for one in weights if (one.ndim > 1) == is_matrix] for is_matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0}], weight_decay=0.05)
    for step in range(6):
        epoch, position = divmod(step, 3)
        images, labels = list(some_digits.batches(64, shuffle_seed=1_000_003 * (epoch + 1)))[position]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 6))
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(expected.module(images), labels))
        torch.nn.utils.clip_grad_norm_([*groups[0], *groups[1]], 1.0)
        optimizer.step()
    trained(tiny_graph, some_digits, epochs=2, batch=64, lr=1e-3, warmup=0.0, device="cpu")
    assert all(map(torch.equal, tiny_graph.parameters().values(), weights))


def test_averaged_weights_become_the_result_and_masked_ones_stay_zero(
    tiny_graph: ModelGraph, some_digits: Dataset
) -> None:
    name = "blocks.0.mlp.fc1.weight"
    tiny_graph.masks[name] = mask = torch.rand(tiny_graph.parameters()[name].shape) < 0.5
    with torch.no_grad():
        tiny_graph.parameters()[name].mul_(mask)
    plain, averaged = tiny_graph.copy(), tiny_graph.copy()
    losses = [trained(graph, some_digits, epochs=1, batch=160, lr=1e-2, warmup=0.0, ema=decay)["loss_last"]
              for graph, decay in ((plain, None), (averaged, 0.75))]  # fmt: skip
    assert losses[0] == losses[1]
    start, end, average = (graph.parameters()[name].detach() for graph in (tiny_graph, plain, averaged))
    torch.testing.assert_close(average, 0.75 * start + 0.25 * end)
    assert (average[~mask] == 0).all()
    assert not torch.equal(average, start)


def test_masked_weights_stay_exactly_zero(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    name = "blocks.0.mlp.fc1.weight"
    weight = tiny_graph.parameters()[name]
    tiny_graph.masks[name] = mask = torch.rand(weight.shape) < 0.5
    with torch.no_grad():
        weight.mul_(mask)
    before = weight.detach().clone()
    trained(tiny_graph, some_digits, epochs=4, batch=64, lr=1e-2)
    assert (weight[~mask] == 0).all()
    assert not torch.equal(weight, before)


def test_a_loss_that_is_not_finite_stops_training_and_names_its_step(
    tiny_graph: ModelGraph, some_digits: Dataset
) -> None:
    steps = iter(range(100))

    def broken(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": logits.sum() * (float("nan") if next(steps) == 2 else 1)}

    with pytest.raises(StageError, match="step 3 of 5: the loss is nan") as caught:
        train(tiny_graph.module, some_digits, broken, Train(epochs=1, batch=32), 0, {}, Silent())
    assert "lr" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_loss_that_is_not_finite_stops_training_within_ten_steps(
    tiny_graph: ModelGraph, some_digits: Dataset
) -> None:
    steps: list[float] = []

    def broken(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        steps.append(float("nan") if len(steps) == 2 else 1.0)
        return {"loss": logits.sum() * steps[-1]}

    with pytest.raises(StageError, match="step 3 of 20: the loss is nan"):
        train(tiny_graph.module, some_digits, broken, Train(epochs=4, batch=32), 0, {}, Silent())
    assert len(steps) == 10


def test_objective_sees_the_positions_of_its_images(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    seen: list[int] = []

    def check(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        for image, label, position in zip(batch.images, batch.labels, batch.positions.tolist(), strict=True):
            assert torch.equal(image, some_digits[position][0])
            assert label == some_digits.labels[position]
        seen.extend(batch.positions.tolist())
        return labels_only(logits, batch)

    train(tiny_graph.module, some_digits, check, Train(epochs=2, batch=48, device="cpu"), 0, {}, Silent())
    assert sorted(seen[:160]) == sorted(seen[160:]) == list(range(160))
    assert seen[:160] != seen[160:]


REGULARIZED = {"augment": "none", "ema": 0.9, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.3, "min_lr": 1e-4}
DEIT = {"augment": "light", "rand_augment": True, "random_erasing": 0.5, "repeated_augmentation": 2}


@pytest.mark.parametrize(
    ("age_s", "write_s", "epoch_ended", "is_due"),
    [(4, 0.03, False, False), (4, 0.03, True, True), (4, 0.3, True, False), (6, 0.03, False, True),
     (6, 0.3, False, False), (59, 4.0, True, False), (61, 4.0, False, True)],
)  # fmt: skip
def test_a_state_that_is_written_fast_is_written_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, write_s: float, epoch_ended: bool, is_due: bool
) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    kept = checkpoint.Checkpoint(tmp_path, {"w": weight}, torch.optim.SGD([weight]), {})
    kept.write_s = write_s
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: kept.saved_at + age_s)
    kept.save(dict, {}, epoch_ended=epoch_ended)
    assert (tmp_path / checkpoint.STATE_FILE).exists() == is_due


@pytest.mark.parametrize(
    ("keys", "interval_s", "done"),
    [(DEIT, 60.0, 10), ({"augment": "none"}, 0.0, 12), (REGULARIZED, 60.0, 10), (REGULARIZED, 0.0, 12)],
)
def test_an_interrupted_training_ends_with_the_same_weights(
    tiny_graph: ModelGraph,
    some_digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    interval_s: float,
    done: int,
) -> None:
    """The state is written after each epoch of five steps, and within an epoch if the last one is old."""
    monkeypatch.setattr(checkpoint, "INTERVAL_S", interval_s)
    monkeypatch.setattr(checkpoint, "WRITE_TIME_FRACTION", float("inf"))
    mask = torch.rand(tiny_graph.parameters()["head.weight"].shape) < 0.5
    tiny_graph.masks["head.weight"] = mask
    with torch.no_grad():
        tiny_graph.parameters()["head.weight"].mul_(mask)
    config = Train(epochs=4, batch=32, lr=1e-3, **keys)
    seen: list[list[int]] = []

    def interrupt(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        if len(seen) == 12:
            raise KeyboardInterrupt
        return record(logits, batch)

    def record(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.positions.tolist())
        losses = labels_only(logits, batch)
        return losses | {"loss": losses["loss"] * (0.5 + torch.rand(()))}  # random, as dropout is

    def fit(graph: ModelGraph, objective: Objective, keep: Path | None) -> dict[str, float]:
        seen.clear()
        module = with_drop_path(graph.module, graph, config.drop_path)
        return train(module, some_digits, objective, config, 0, graph.masks, Silent(), keep=keep, classes=10)

    whole, interrupted, resumed = tiny_graph.copy(), tiny_graph.copy(), tiny_graph.copy()
    metrics = fit(whole, record, None)
    order = list(seen)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, interrupt, tmp_path / "kept")
    slow = load_file(tmp_path / "kept" / checkpoint.STATE_FILE)
    slow["history:seconds"][0] = 1000.0
    save_file(slow, tmp_path / "kept" / checkpoint.STATE_FILE)
    again = fit(resumed, record, tmp_path / "kept")
    assert 0 < metrics.pop("seconds") < 1000 < again.pop("seconds") < 2000
    assert 0 < again.pop("stall_share") < metrics.pop("stall_share") < 1
    assert again == metrics
    assert seen == order[done:]
    assert all(map(torch.equal, whole.parameters().values(), resumed.parameters().values()))
    assert (resumed.parameters()["head.weight"][~mask] == 0).all()


def test_a_damaged_training_state_is_refused(tiny_graph: ModelGraph, some_digits: Dataset, tmp_path: Path) -> None:
    for content in (b"nonsense", save({"weight:head.bias": torch.zeros(10)})):
        (tmp_path / "training.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"training state .* is damaged") as caught:
            train(tiny_graph.module, some_digits, labels_only, Train(), 0, {}, Silent(), keep=tmp_path)
        assert "--fresh" in caught.value.hint


@pytest.mark.parametrize("keys", [{"accumulate": 4}, {"activation_checkpointing": True}])
def test_keys_that_save_memory_do_not_change_the_result(
    tiny_graph: ModelGraph, some_digits: Dataset, keys: dict[str, Any]
) -> None:
    plain, other = tiny_graph.copy(), tiny_graph.copy()
    config: dict[str, Any] = {"epochs": 1, "batch": 32, "lr": 1e-2, "optimizer": "sgd", "drop_path": 0.0}
    metrics, found = trained(plain, some_digits, **config), trained(other, some_digits, **config, **keys)
    assert found["loss_last"] == pytest.approx(metrics["loss_last"], rel=1e-5)
    assert found["mean_logit"] == pytest.approx(metrics["mean_logit"], rel=1e-4)
    for name, weight in plain.parameters().items():
        torch.testing.assert_close(other.parameters()[name], weight, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_keeps_one_activation_of_each_block(tiny_graph: ModelGraph) -> None:
    def kept_elements(module: torch.nn.Module) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(torch.zeros(4, 3, 32, 32))
        return sum(sizes)

    recomputed = with_recomputation(tiny_graph.module)
    assert {id(one) for one in recomputed.parameters()} == {id(one) for one in tiny_graph.module.parameters()}
    assert kept_elements(recomputed) < 0.2 * kept_elements(tiny_graph.module)


@pytest.mark.parametrize("optimizer", ["nadamw", "lamb", "lion", "sgd"])
def test_every_optimizer_continues_with_its_state(
    tiny_graph: ModelGraph, some_digits: Dataset, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)
    config = Train(epochs=1, batch=40, lr=1e-3, optimizer=optimizer)
    whole, killed, resumed = (tiny_graph.copy() for _ in range(3))
    left = iter(range(3))

    def interrupt(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        if next(left) == 2:
            raise KeyboardInterrupt
        return labels_only(logits, batch)

    train(whole.module, some_digits, labels_only, config, 0, {}, Silent())
    with pytest.raises(KeyboardInterrupt):
        train(killed.module, some_digits, interrupt, config, 0, {}, Silent(), keep=tmp_path)
    train(resumed.module, some_digits, labels_only, config, 0, {}, Silent(), keep=tmp_path)
    assert all(map(torch.equal, whole.parameters().values(), resumed.parameters().values()))
