"""Where training runs; what needs a GPU is skipped without one."""

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
from vitslim.recipe.stages.training import Train
from vitslim.training import Batch, hard_loss, train, variation
from vitslim.training.device import arithmetic, find_device, find_precision
from vitslim.training.variation import mixed, strongly_varied

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
def test_auto_is_bfloat16_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert find_precision(Train(precision="auto"), torch.device("cpu")) == expected
    with arithmetic(Train(precision="auto"), torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == (expected == "bfloat16")


def test_without_auto_a_precision_is_what_the_recipe_says() -> None:
    here, there = torch.device("cpu"), torch.device("cuda")
    assert [find_precision(Train(precision=name), here) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert [find_precision(Train(precision="tfloat32"), one) for one in (here, there)] == ["float32", "tfloat32"]


def test_mixtures_lie_between_an_image_and_its_neighbor() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    result = mixed(images)
    assert result.shape == images.shape
    assert (result == result[:, :1, :1, :1]).all()
    lower, upper = torch.minimum(images, images.roll(1, 0)), torch.maximum(images, images.roll(1, 0))
    assert ((result >= lower) & (result <= upper)).all()
    assert len({round(float(x - low), 3) for x, low in zip(result[:, 0, 0, 0], lower[:, 0, 0, 0], strict=True)}) == 4


@pytest.mark.parametrize("mix", [False, True])
def test_mixtures_are_what_the_model_and_the_objective_see(
    tiny_graph: ModelGraph, some_digits: Dataset, mix: bool
) -> None:
    fits = []

    def look(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        original = torch.stack([some_digits[position][0] for position in batch.positions.tolist()])
        fits.append(torch.allclose(batch.images.cpu(), original))
        with torch.no_grad():
            torch.testing.assert_close(logits, tiny_graph.module(batch.images))
        return labels_only(logits, batch)

    train(tiny_graph.module, some_digits, look, Train(epochs=1, batch=40, mix=mix), 0, {}, Silent())
    assert fits == [not mix] * 4


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
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)
    after = graphs["cuda"].parameters()[name]
    assert after.device.type == "cpu"
    assert (after[~mask] == 0).all()
    torch.testing.assert_close(after, graphs["cpu"].parameters()[name], rtol=0.05, atol=1e-3)


@gpu
def test_training_goes_on_on_a_gpu(tiny_graph: ModelGraph, some_digits: Dataset, tmp_path: Path) -> None:
    whole, killed, resumed = tiny_graph.copy(), tiny_graph.copy(), tiny_graph.copy()
    config = Train(epochs=3, batch=32, lr=1e-3, device="cuda")
    metrics = train(whole.module, some_digits, labels_only, config, 0, {}, Silent())
    left = iter(range(12))

    def dies(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        if next(left) == 11:
            raise KeyboardInterrupt
        return labels_only(logits, batch)

    with pytest.raises(KeyboardInterrupt):
        train(killed.module, some_digits, dies, config, 0, {}, Silent(), keep=tmp_path)
    assert all(weight.device.type == "cpu" for weight in killed.parameters().values())
    again = train(resumed.module, some_digits, labels_only, config, 0, {}, Silent(), keep=tmp_path)
    assert again == pytest.approx(metrics, rel=1e-4)


def test_strong_variations_are_crops_of_the_image_in_other_colors() -> None:
    """On an image that is a ramp from -1 to 1 along each side, a crop shows a part of both ramps."""
    ramp = torch.linspace(-1, 1, 32)
    across, down = ramp.expand(32, 32), ramp[:, None].expand(32, 32)
    images = torch.stack([across, down, torch.zeros(32, 32)]).expand(200, -1, -1, -1).contiguous()
    torch.manual_seed(0)
    plain = crops_of(images)
    assert plain.abs().max() <= 1
    width, height = (plain[:, c].amax((1, 2)) - plain[:, c].amin((1, 2)) for c in (0, 1))
    area = width * height / 4
    assert 0.08 < area.min() < 0.15
    assert area.max() > 0.9
    flipped = plain[:, 0, 0, 0] > plain[:, 0, 0, -1]
    assert 70 < flipped.sum() < 130
    assert not (plain[:, 1, 0, 0] > plain[:, 1, -1, 0]).any()
    torch.manual_seed(0)
    varied = strongly_varied(images)
    assert varied.shape == images.shape
    assert not torch.allclose(varied, plain, atol=0.05)
    spread = varied.flatten(1).std(dim=1) / plain.flatten(1).std(dim=1)
    assert 0.3 < spread.min() < 0.8
    assert 1.2 < spread.max() < 2


def crops_of(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grid_sample(images, variation._crops(images), align_corners=False, padding_mode="border")


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
    assert compiled == pytest.approx(plain, rel=1e-5)


WITHOUT_A_COMPILER = """
from torch import nn
from vitslim.data.digits import load_digit_sets
from vitslim.errors import StageError
from vitslim.progress import Silent
from vitslim.recipe.stages.training import Train
from vitslim.training import hard_loss, train

digits, _ = load_digit_sets((1, 8, 8))
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
loss = lambda logits, batch: {"loss": hard_loss(logits, batch.labels)}
try:
    train(model, digits, loss, Train(batch=50, device="cpu", compile=True), 0, {}, Silent())
except StageError as error:
    print(error, "|", error.hint)
"""


def test_without_a_compiler_a_recipe_is_told_so() -> None:
    """In a process of its own: what PyTorch knows of compilers it does not forget."""
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-c", WITHOUT_A_COMPILER]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert re.search(r"cannot be compiled here: .*compiler.*\| .*train.compile", shown, re.DOTALL)


def test_tensor_cores_multiply_float32_only_where_a_recipe_says_so(some_digits: Dataset) -> None:
    """The precision is that of the recipe while gradients are computed too, and as before afterwards."""
    seen: list[str] = []

    def look(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        logits.register_hook(lambda _: seen.append(torch.get_float32_matmul_precision()))
        return labels_only(logits, batch)

    model = nn.Sequential(nn.Flatten(), nn.Linear(some_digits[0][0].numel(), 10))
    before = torch.get_float32_matmul_precision()
    for precision in ("float32", "tfloat32"):
        train(model, some_digits, look, Train(epochs=1, batch=160, device="cpu", precision=precision), 0, {}, Silent())
    assert seen == ["highest", "high"]
    assert torch.get_float32_matmul_precision() == before
