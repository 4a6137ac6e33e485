"""Where training runs, and with which numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from vitslim.errors import BackendUnavailableError, StageError
from vitslim.graph.device import move
from vitslim.recipe.stages.training import Train
from vitslim.training.attention import PlainAttention

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Of CPUs; without them bfloat16 is slower than float32."""


def find_device(config: Train) -> torch.device:
    """The device that a recipe means; `auto` is the GPU where there is one.

    Raises BackendUnavailableError for `cuda` without a GPU.
    """
    here = torch.cuda.is_available()
    if config.device == "cuda" and not here:
        raise BackendUnavailableError(
            "train.device is cuda, and PyTorch finds no CUDA device here", "set train.device to auto, or to cpu"
        )
    return torch.device("cuda" if here and config.device != "cpu" else "cpu")


@contextmanager
def placed(student: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it a model is on a device; afterwards on the CPU, and random numbers go on as if none had been drawn."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        move(student, device)
        try:
            yield
        finally:
            move(student, torch.device("cpu"))


@contextmanager
def compilation(config: Train) -> Iterator[None]:
    """Within it what a recipe wants compiled may be; afterwards it is forgotten, or later stages would find no room.

    Raises StageError where PyTorch cannot compile, such as without a compiler.
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
    """For people: `cpu`, or the name of the GPU."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def find_precision(config: Train, device: torch.device) -> str:
    """`float32` or `bfloat16`, as a recipe means it on a device."""
    gpu = device.type == "cuda"
    if config.precision != "auto":
        return config.precision
    if gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_INSTRUCTIONS)
    return "bfloat16" if native else "float32"


@contextmanager
def arithmetic(config: Train, device: torch.device) -> Iterator[None]:
    """Within it models compute with the precision that a recipe asks for; weights are float32 always."""
    short = find_precision(config, device) == "bfloat16"
    # A compiler chooses its own attention.
    plain = short and device.type == "cpu" and not config.compile
    with torch.autocast(device.type, torch.bfloat16, enabled=short), PlainAttention() if plain else nullcontext():
        yield
