"""Load a safetensors checkpoint into a model, with error messages for checkpoints that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vitslim.errors import InputError

SHOWN = 3
"""Number of differing parameters that an error names."""

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of files that `torch.save` writes; a valid safetensors file can also start with them."""


def load_checkpoint(model: torch.nn.Module, path: Path, name: str) -> None:
    """Load a checkpoint strictly; FP16 and BF16 tensors become FP32.

    `name` is the timm name, for messages. Raises InputError when the file is missing, empty, no safetensors file, or
    holds other parameters than the model has.
    """
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in read_safetensors(path).items()}
    expected = model.state_dict()
    problem = _difference(expected, tensors)
    if problem:
        raise InputError(f"checkpoint '{path}' does not fit '{name}': {problem}", _hint(expected, tensors))
    model.load_state_dict(tensors, strict=True)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file. Raises InputError with the reason when it cannot be read."""
    if path.is_dir():
        raise InputError(f"checkpoint '{path}' is a folder", "name the .safetensors file in it")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint '{path}' does not exist", "check model.checkpoint in the recipe") from error
    except OSError as error:
        raise InputError(f"checkpoint '{path}' cannot be read: {error.strerror}", "check its permissions") from error
    if not start:
        raise InputError(f"checkpoint '{path}' is empty", "download or copy it again")
    try:
        return load_file(path)
    except SafetensorError as error:
        if start.startswith(PICKLE_STARTS):
            raise InputError(
                f"checkpoint '{path}' is a pickle, which can run code when it is read",
                "convert it with safetensors.torch.save_file(state_dict, 'model.safetensors')",
            ) from error
        raise InputError(
            f"checkpoint '{path}' is not a valid safetensors file ({error})", "download or copy it again"
        ) from error


def _difference(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {_size(found[key])} instead of {_size(tensor)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)


def _hint(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    differing = {key for key in expected if key not in found or found[key].shape != expected[key].shape}
    heads = sorted(key for key in differing if key.startswith("head") and key in found)
    if heads and differing == set(heads) and not found.keys() - expected.keys():
        ours, theirs = expected[heads[-1]].shape[0], found[heads[-1]].shape[0]
        return f"only the head differs: set model.kwargs.num_classes to {theirs} (it is {ours})"
    return "the checkpoint is of another architecture: check model.timm and model.kwargs"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
