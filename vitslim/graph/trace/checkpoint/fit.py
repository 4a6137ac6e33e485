"""Fit the weights of a checkpoint to a timm model: names, number of classes, image size, channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitslim.errors import InputError
from vitslim.graph.trace.checkpoint.entries import Tensors, choose_entry, strip_prefixes
from vitslim.graph.trace.checkpoint.formats import is_flax, read_checkpoint, read_flax
from vitslim.graph.trace.checkpoint.transformers_names import is_transformers, timm_names

SHOWN = 3
"""Number of differing parameters that an error names."""
HEADS = ("head", "head.fc", "fc", "classifier", "head_dist")
FLAX_HEADS = ("head/bias", "opt/target/head/bias", "params/head/bias")


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint, ready to be loaded by timm."""

    path: Path
    tensors: Tensors
    """By the names of timm, or of the original release of the model; by those of Flax for an `.npz` archive."""
    flax: bool
    classes: int | None
    """Outputs of the classifier; None if the checkpoint has none that is known by its name."""
    channels: int | None
    """Channels of the images; None if unknown."""
    notes: tuple[str, ...]
    """How the content was read, one sentence each."""

    @property
    def overlay(self) -> dict[str, Any]:
        """The pretrained configuration from which timm loads these weights, adapting them to the model."""
        if self.flax:
            return {"file": str(self.path), "custom_load": True}
        return {"state_dict": dict(self.tensors), "custom_load": False, "label_offset": 0}


def read_weights(model: torch.nn.Module, path: Path, entry: str | None = None) -> Weights:
    """Return the weights of a checkpoint for a timm model.

    entry: name of the state dict in a checkpoint that has several; default: averaged weights before others. Raises
    InputError if the checkpoint cannot be read.
    """
    if is_flax(path):
        arrays = read_flax(path)
        classes = next((arrays[name].shape[0] for name in FLAX_HEADS if name in arrays), None)
        return Weights(path, arrays, True, classes, None, ("NumPy archive of the original release",))
    expected = model.state_dict()
    tensors, notes = choose_entry(read_checkpoint(path), entry, path)
    tensors, removed = strip_prefixes(tensors, expected)
    notes += removed
    if is_transformers(tensors):
        tensors = timm_names(tensors)
        notes = (*notes, "parameter names of transformers translated to those of timm")
    derived = {name for name, _ in model.named_buffers()} - expected.keys()
    tensors = {name: tensor for name, tensor in tensors.items() if name not in derived}
    classes = next((rows for name in _heads(model) if (rows := _rows(tensors, name))), None)
    return Weights(path, tensors, False, classes, _channels(model, tensors), notes)


def with_arguments(
    weights: Weights, model: torch.nn.Module, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """Return the arguments of the model with the classes and channels of the checkpoint, and the weights with notes.

    Arguments in `kwargs` stay; `num_classes: 0` leaves the head of the checkpoint out. Raises InputError if they ask
    for another number of classes, or for a number of channels to which timm cannot adapt the first convolution.
    """
    found, notes = dict(kwargs), list[str]()
    classes = int(getattr(model, "num_classes", 0))
    if kwargs.get("num_classes") == 0:
        weights, dropped = _without_head(weights, model)
        notes += dropped
    elif weights.classes not in (None, classes):
        if "num_classes" in kwargs:
            raise InputError(
                f"the head of checkpoint '{weights.path}' has {weights.classes} classes, model.kwargs.num_classes is "
                f"{classes}",
                f"remove model.kwargs.num_classes, or set it to {weights.classes}",
            )
        found["num_classes"] = weights.classes
        notes.append(f"num_classes = {weights.classes}, from the head of the checkpoint")
    channels = int(kwargs.get("in_chans", 3))
    if weights.channels not in (None, channels):
        if "in_chans" not in kwargs:
            found["in_chans"] = weights.channels
            notes.append(f"in_chans = {weights.channels}, from the first layer of the checkpoint")
        elif channels != 1 and weights.channels != 3:
            raise InputError(
                f"checkpoint '{weights.path}' is for images with {weights.channels} channels, model.kwargs.in_chans is "
                f"{channels}",
                f"set model.kwargs.in_chans to {weights.channels}",
            )
    return found, replace(weights, notes=(*weights.notes, *notes))


def _without_head(weights: Weights, model: torch.nn.Module) -> tuple[Weights, tuple[str, ...]]:
    """Return the weights without those of the classifier, and a sentence if there are any."""
    if weights.flax or weights.classes is None:
        return weights, ()
    head = {f"{layer}.{kind}" for layer in _heads(model) for kind in ("weight", "bias")}
    kept = {name: tensor for name, tensor in weights.tensors.items() if name not in head}
    note = f"the head of the checkpoint, of {weights.classes} classes, is left out: num_classes = 0"
    return replace(weights, tensors=kept, classes=None), (note,)


def adaptations(weights: Weights, model: torch.nn.Module) -> tuple[str, ...]:
    """Return a sentence for each tensor whose shape timm changes to fit the model."""
    expected = {} if weights.flax else model.state_dict()
    return tuple(
        f"{name} adapted from {_size(weights.tensors[name])} to {_size(tensor)}"
        for name, tensor in expected.items()
        if name in weights.tensors and weights.tensors[name].shape != tensor.shape
    )


def mismatch(weights: Weights, model: torch.nn.Module, timm_name: str) -> InputError:
    """Return the error for weights that do not fit a model, with the parameters that differ."""
    expected = model.state_dict()
    if weights.flax:
        problem, hint = "timm has no loader for its arrays", "use a checkpoint in safetensors or .pth"
    else:
        problem, hint = _difference(expected, weights.tensors), _hint(expected, weights.tensors)
    return InputError(f"checkpoint '{weights.path}' does not fit '{timm_name}': {problem}", hint)


def _heads(model: torch.nn.Module) -> tuple[str, ...]:
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (*((named,) if isinstance(named, str) else named), *HEADS)


def _rows(tensors: Tensors, layer: str) -> int | None:
    weight = tensors.get(f"{layer}.weight")
    return None if weight is None or weight.ndim < 2 else weight.shape[0]


def _channels(model: torch.nn.Module, tensors: Tensors) -> int | None:
    first = getattr(model, "pretrained_cfg", {}).get("first_conv")
    weight = tensors.get(f"{first}.weight") if isinstance(first, str) else None
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


def _difference(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {_size(found[key])} instead of {_size(tensor)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
    differences = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)
    return differences or "timm cannot convert it"


def _hint(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    for ours, theirs, pooling in (("norm.", "fc_norm.", "avg"), ("fc_norm.", "norm.", "token")):
        if missing and all(n.startswith(ours) for n in missing) and all(n.startswith(theirs) for n in unexpected):
            return f"the model of the checkpoint pools its tokens otherwise: set model.kwargs.global_pool to {pooling}"
    heads = [name for name in missing if name.startswith("head")]
    if missing and len(heads) == len(missing) and not unexpected:
        return "the checkpoint has no classifier: use one that was trained with a head"
    return "the checkpoint is of another architecture: check model.timm and model.kwargs"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
