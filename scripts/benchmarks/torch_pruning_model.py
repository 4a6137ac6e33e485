"""Torch-Pruning on one timm model.

Follows its documentation for attention: the classifier is ignored, the number of heads is declared for every module
with heads, and head counts and widths are written back after pruning. Half of the channels are pruned.
"""

from __future__ import annotations

import signal
from time import perf_counter
from typing import Any

import timm
import torch
import torch_pruning
from timm_models import classifier_for
from torch import nn

RUNS = 2
PROJECTIONS = ("qkv", "q", "k", "v", "q_proj", "k_proj", "v_proj", "kv", "qk")
"""Names of attention projections in timm."""
LIMIT_S = 60
"""Time limit of one model, several times the longest successful run."""


def measure(model: str) -> dict[str, Any]:
    """Return the shortest seconds to build groups and prune, and whether the pruned model runs."""
    row: dict[str, Any] = {"peer_ok": False, "peer_error": ""}
    signal.signal(signal.SIGALRM, _raise_timeout)
    signal.alarm(LIMIT_S)
    try:
        row |= _measured(model)
    except Exception as error:  # noqa: BLE001 - the row reports every failure
        row["peer_error"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    finally:
        signal.alarm(0)
    return row


def _raise_timeout(*_: object) -> None:
    raise TimeoutError(f"not finished after {LIMIT_S} s")


def _measured(model: str) -> dict[str, Any]:
    seconds: list[float] = []
    for _ in range(RUNS):
        torch.manual_seed(0)
        net = timm.create_model(model, pretrained=False, **classifier_for(model)).eval()
        image = torch.randn(1, *timm.data.resolve_model_data_config(net)["input_size"])
        start = perf_counter()
        pruner = pruner_of(net, image, torch_pruning.importance.RandomImportance(), 0.5, 1)
        pruner.step()
        write_back(pruner)
        seconds.append(perf_counter() - start)
    with torch.no_grad():
        net(image)
    return {"peer_ok": True, "peer_s": min(seconds), "peer_params_after": sum(w.numel() for w in net.parameters())}


def pruner_of(net: nn.Module, image: torch.Tensor, importance: Any, pruning_ratio: float, round_to: int) -> Any:
    """Return the pruner of a timm model: uniform ratios, no heads removed, equal head widths."""
    classifier = net.get_classifier() if hasattr(net, "get_classifier") else None
    classifiers = list(classifier) if isinstance(classifier, (tuple, list)) else [classifier]
    return torch_pruning.pruner.BasePruner(
        net,
        image,
        importance=importance,
        pruning_ratio=pruning_ratio,
        round_to=round_to,
        ignored_layers=[layer for layer in classifiers if isinstance(layer, nn.Linear)],
        num_heads=dict(_heads(net)),
        prune_head_dims=True,
        prune_num_heads=False,
    )


def _heads(net: nn.Module) -> list[tuple[nn.Module, int]]:
    return [
        (projection, module.num_heads)
        for module in net.modules()
        if isinstance(getattr(module, "num_heads", None), int)
        for name in PROJECTIONS
        if isinstance(projection := getattr(module, name, None), (nn.Linear, nn.Conv2d))
    ]


def write_back(pruner: Any) -> None:
    """Write the number and width of heads after pruning into the modules that store them."""
    for module in pruner.model.modules():
        for name in PROJECTIONS:
            projection = getattr(module, name, None)
            if projection not in pruner.num_heads or not isinstance(projection, nn.Linear):
                continue
            module.num_heads = pruner.num_heads[projection]
            width = projection.out_features // {"qkv": 3, "kv": 2, "qk": 2}.get(name, 1)
            module.head_dim = width // module.num_heads
            if hasattr(module, "attn_dim"):
                module.attn_dim = width
