"""Rows of `scripts/bench nipq` for the cost of a training step: noise in place of rounding, against LSQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from vitslim.data import load_data
from vitslim.graph.edits.quantize_attention import decomposed
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.noise_form import noise_form
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Nipq
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.nipq.assignment import insert_learned
from vitslim.stages.quantize.nipq.proxies import activation_operands, find_proxies
from vitslim.stages.quantize.nipq.tensors import attention_blocks, find_tensors
from vitslim.training.optimizer import make_optimizer

MODEL = "deit_tiny_patch16_224"
BATCH, ROUNDS = 32, 7


def step_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the milliseconds and the memory of a step of DeiT-Tiny; weights are random, which costs the same."""
    graph = trace_timm(MODEL, {})
    modules = _modules(graph)
    images, labels = torch.randn(BATCH, *graph.source.image), torch.randint(0, graph.source.classes, (BATCH,))
    optimizers = {name: make_optimizer(_trained(module), Train()) for name, module in modules.items()}
    for name, module in modules.items():
        _step(module, optimizers[name], images, labels)
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(ROUNDS):
        for name, module in modules.items():
            start = perf_counter()
            _step(module, optimizers[name], images, labels)
            times[name].append(perf_counter() - start)
    base = "LSQ"
    kept = {name: kept_bytes(module, images) for name, module in modules.items()}
    for name, seconds in times.items():
        ratios = [own / other for own, other in zip(seconds, times[base], strict=True)]
        yield name, {"step_ms": 1e3 * median(seconds), "time_over_lsq": median(ratios), "rounds": ROUNDS,
                     "kept_mb": kept[name] / 1e6, "memory_over_lsq": kept[name] / kept[base]}  # fmt: skip


def _modules(graph: ModelGraph) -> dict[str, nn.Module]:
    """Return the model with real quantizers of four bits, and with both kinds of noise."""
    config = Nipq(method="nipq", bits=4, activation_bits=4)
    data = load_data(Data(kind="digits", calibration=8), graph.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), Path())
    blocks = attention_blocks(config, sketch(graph))
    plain = decomposed(graph, blocks)
    tensors = find_tensors(config, sketch(graph))
    proxies = find_proxies(plain, config, tensors, activation_operands(plain, tensors), context)
    ends = {name: proxy.end for name, proxy in proxies.items()}
    real, _ = insert_learned(plain, blocks, proxies, dict.fromkeys(proxies, 4), ends)
    uniform, empirical = (noise_form(plain.copy(), proxies, empirical=kind).module for kind in (False, True))
    return {"LSQ": real.module, "uniform noise": uniform, "empirical noise": empirical, "float": graph.module}


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(module(images), labels))
    optimizer.step()


def kept_bytes(module: Callable[[torch.Tensor], Any], images: torch.Tensor) -> int:
    """Return the bytes of all tensors that the forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # a freed storage would give its address to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(images)
    return sum(storages.values())
