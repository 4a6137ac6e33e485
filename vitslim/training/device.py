"""The device and the precision of training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from vitslim.errors import BackendUnavailableError, StageError
from vitslim.graph.device import move
from vitslim.ranks import launched_ranks
from vitslim.recipe.train import Train

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU features without which bfloat16 is slower than float32."""


def find_device(config: Train) -> torch.device:
    """Return the training device of this rank; `auto` is the GPU if there is one.

    Raises BackendUnavailableError for `cuda` without a GPU, and for fewer GPUs than ranks on this machine.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise BackendUnavailableError(
            "`train.device: cuda` needs a GPU, and PyTorch finds no CUDA device",
            "set train.device to auto, or to cpu",
        )
    if not available or config.device == "cpu":
        return torch.device("cpu")
    if launched_ranks() == 1:
        return torch.device("cuda")
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if local > gpus:
        raise BackendUnavailableError(
            f"torchrun started {local} ranks on this machine, which has {gpus} GPUs", f"use --nproc-per-node {gpus}"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


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
