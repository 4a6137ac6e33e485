"""The device and precision of training. Tests that need a GPU are skipped without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from vitslim.data import Dataset
from vitslim.errors import BackendUnavailableError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import Batch, hard_loss, train
from vitslim.training.device import find_device, find_precision

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Device = Literal["auto", "cpu", "cuda"]


def labels_only(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": hard_loss(logits, batch.labels), "device": torch.tensor(float(logits.is_cuda))}


def trained(graph: ModelGraph, dataset: Dataset, keep: Path | None = None, **config: Any) -> dict[str, float]:
    return train(graph.module, dataset, labels_only, Train(**config), 0, graph.masks, Silent(), keep=keep)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    assert find_device(Train()).type == "cpu"
    with pytest.raises(BackendUnavailableError, match="no CUDA device") as caught:
        trained(tiny_graph, some_digits, device="cuda")
    assert caught.value.exit_code == 4
    assert "auto" in caught.value.hint


def test_bfloat16_trains_nearly_as_float32_does(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    losses = {
        precision: trained(tiny_graph.copy(), some_digits, epochs=3, batch=32, lr=1e-3, precision=precision)
        for precision in ("float32", "bfloat16")
    }
    assert losses["bfloat16"]["loss_first"] != losses["float32"]["loss_first"]
    assert losses["bfloat16"]["loss_last"] == pytest.approx(losses["float32"]["loss_last"], rel=0.05)
    trained(tiny_graph, some_digits, epochs=1, precision="bfloat16")
    assert {weight.dtype for weight in tiny_graph.parameters().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("has", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32"),
     ({"avx512_bf16": False}, "float32")],
)  # fmt: skip
def test_auto_is_bfloat16_if_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert find_precision(Train(precision="auto"), torch.device("cpu")) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_other_than_auto_is_used_on_every_device(
    device: str, precision: Literal["float32", "bfloat16"]
) -> None:
    assert find_precision(Train(precision=precision), torch.device(device)) == precision


@gpu
def test_a_gpu_trains_as_the_cpu_does(tiny_graph: ModelGraph, some_digits: Dataset, tmp_path: Path) -> None:
    name = "blocks.0.mlp.fc1.weight"
    weight = tiny_graph.parameters()[name]
    tiny_graph.masks[name] = mask = torch.rand(weight.shape) < 0.5
    with torch.no_grad():
        weight.mul_(mask)
    devices: tuple[Device, ...] = ("cpu", "cuda")
    graphs = {device: tiny_graph.copy() for device in devices}
    found = {d: trained(g, some_digits, epochs=3, batch=32, lr=1e-3, device=d) for d, g in graphs.items()}
    assert [found[device].pop("device") for device in devices] == [0, 1]
    for metrics in found.values():
        del metrics["seconds"], metrics["stall_share"]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)
    after = graphs["cuda"].parameters()[name]
    assert after.device.type == "cpu"
    assert (after[~mask] == 0).all()
    torch.testing.assert_close(after, graphs["cpu"].parameters()[name], rtol=0.05, atol=1e-3)


@gpu
def test_an_interrupted_training_continues_on_a_gpu(
    tiny_graph: ModelGraph, some_digits: Dataset, tmp_path: Path
) -> None:
    whole, killed, resumed = tiny_graph.copy(), tiny_graph.copy(), tiny_graph.copy()
    config = Train(epochs=3, batch=32, lr=1e-3, device="cuda")
    metrics = train(whole.module, some_digits, labels_only, config, 0, {}, Silent())
    left = iter(range(12))

    def interrupt(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        if next(left) == 11:
            raise KeyboardInterrupt
        return labels_only(logits, batch)

    with pytest.raises(KeyboardInterrupt):
        train(killed.module, some_digits, interrupt, config, 0, {}, Silent(), keep=tmp_path)
    assert all(weight.device.type == "cpu" for weight in killed.parameters().values())
    again = train(resumed.module, some_digits, labels_only, config, 0, {}, Silent(), keep=tmp_path)
    for found in (metrics, again):
        del found["seconds"], found["stall_share"]
    assert again == pytest.approx(metrics, rel=1e-4)


@pytest.mark.slow
def test_compiled_training_ends_with_the_same_losses(some_digits: Dataset) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(image), nn.Linear(image, 10))

    image = some_digits[0][0].numel()
    plain, compiled = (
        train(make(), some_digits, labels_only, Train(epochs=2, batch=48, device="cpu", compile=on), 0, {}, Silent())
        for on in (False, True)
    )
    assert compiled.pop("seconds") > plain.pop("seconds")
    del compiled["stall_share"], plain["stall_share"]
    assert compiled == pytest.approx(plain, rel=1e-5)


WITHOUT_A_COMPILER = """
from torch import nn
from vitslim.data.digits import load_digit_sets
from vitslim.errors import StageError
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import hard_loss, train

digits, _ = load_digit_sets((1, 8, 8))
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
loss = lambda logits, batch: {"loss": hard_loss(logits, batch.labels)}
try:
    train(model, digits, loss, Train(batch=50, device="cpu", compile=True), 0, {}, Silent())
except StageError as error:
    print(error, "|", error.hint)
"""


@pytest.mark.slow
def test_compilation_without_a_compiler_is_refused() -> None:
    """In a separate process, because PyTorch caches the compiler that it found."""
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-c", WITHOUT_A_COMPILER]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert re.search(r"cannot be compiled here: .*compiler.*\| .*train.compile", shown, re.DOTALL)
