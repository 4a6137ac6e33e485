"""The device and the precision of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from vitslim.errors import BackendUnavailableError, StageError
from vitslim.graph.device import move
from vitslim.recipe.train import Train
from vitslim.training.attention import UnfusedAttention

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU features without which bfloat16 is slower than float32."""


def find_device(config: Train) -> torch.device:
    """Return the training device; `auto` is the GPU if there is one.

    Raises BackendUnavailableError for `cuda` without a GPU.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise BackendUnavailableError(
            "`train.device: cuda` needs a GPU, and PyTorch finds no CUDA device",
            "set train.device to auto, or to cpu",
        )
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


@contextmanager
def on_device(student: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a model to a device, and back to the CPU on exit; the state of the random generators is restored."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        move(student, device)
        try:
            yield
        finally:
            move(student, torch.device("cpu"))


@contextmanager
def compilation(config: Train) -> Iterator[None]:
    """Reset torch.compile on exit, so that graphs compiled for this training do not count against later stages.

    Raises StageError if PyTorch cannot compile, for example without a C++ compiler.
    """
    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]
        raise StageError(f"this training cannot be compiled here: {reason}", "set train.compile to false") from error
    finally:
        if config.compile:
            torch.compiler.reset()


def device_name(device: torch.device) -> str:
    """Return `cpu`, or the product name of the GPU."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def find_precision(config: Train, device: torch.device) -> str:
    """Return `float32` or `bfloat16`; `auto` is bfloat16 if the device has instructions for it."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_INSTRUCTIONS)
    return "bfloat16" if is_native else "float32"


@contextmanager
def autocast(config: Train, device: torch.device) -> Iterator[None]:
    """Compute activations and matmuls in the precision of the recipe; weights are always float32."""
    enabled = find_precision(config, device) == "bfloat16"
    # torch.compile chooses its own implementation of attention.
    unfused = enabled and device.type == "cpu" and not config.compile
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), UnfusedAttention() if unfused else nullcontext():
        yield
