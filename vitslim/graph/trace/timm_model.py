"""Trace a timm model: build it, load the checkpoint, export it with a dynamic batch, normalize the graph."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch.export import Dim, export

from vitslim.errors import InputError, UsageError
from vitslim.graph.model_graph import ModelGraph, ModelSource, Preprocessing
from vitslim.graph.trace.checkpoint import load_checkpoint
from vitslim.graph.trace.normalize import normalize

RESERVED = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments of timm.create_model that would load weights without the checks made here."""

EXAMPLE_BATCH = 2
"""torch.export specializes batch sizes 0 and 1, so the example has two images."""


def trace_timm(timm_name: str, kwargs: dict[str, Any], checkpoint: Path | None = None, seed: int = 0) -> ModelGraph:
    """Return the exported graph of a timm model in evaluation mode; its outputs equal the model's bit for bit.

    `kwargs` go to `timm.create_model`. Without a checkpoint the weights are random, from `seed`. Weights are never
    downloaded. Raises UsageError for an unknown name or arguments that the model does not take, InputError for a
    checkpoint that cannot be read or does not fit, and for a model that torch.export cannot trace.
    """
    model = _build(timm_name, kwargs, seed)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, timm_name)
    image, preprocessing = _input(model, kwargs)
    example = torch.zeros(EXAMPLE_BATCH, *image)
    with torch.no_grad():
        logits = _example_logits(model, example, timm_name)
    try:
        exported = export(model, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torch.export cannot trace '{timm_name}': {_first_line(error)}") from error
    module = normalize(exported.module())
    module.eval()
    source = ModelSource(timm_name, dict(kwargs), image, logits.shape[1], preprocessing)
    return ModelGraph(module, source)


def _build(timm_name: str, kwargs: dict[str, Any], seed: int) -> torch.nn.Module:
    if ":" in timm_name or not timm.is_model(timm_name):
        raise UsageError(f"timm has no model '{timm_name}'", _closest_model(timm_name))
    for key in sorted(RESERVED & kwargs.keys()):
        raise UsageError(f"model.kwargs cannot hold '{key}'", "name the weights in model.checkpoint")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: torch.nn.Module = timm.create_model(timm_name, pretrained=False, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        reason = _first_line(error) or "an assertion of the model does not hold"
        raise UsageError(
            f"timm cannot build '{timm_name}' with {arguments}: {reason}", "check model.timm and model.kwargs"
        ) from error
    return model.eval()


def _closest_model(name: str) -> str:
    match = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else "timm.list_models() lists the names"


def _input(model: torch.nn.Module, kwargs: dict[str, Any]) -> tuple[tuple[int, int, int], Preprocessing]:
    """Return image size and preprocessing: the arguments override the values that timm lists for pretrained weights."""
    given = {key: kwargs[key] for key in ("img_size", "in_chans") if kwargs.get(key)}
    config = resolve_model_data_config(model, args=given)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    mean, std = config["mean"], config["std"]
    if len(mean) != channels:
        mean, std = (math.fsum(mean) / len(mean),) * channels, (math.fsum(std) / len(std),) * channels
    preprocessing = Preprocessing(
        tuple(map(float, mean)), tuple(map(float, std)), config["interpolation"], float(config["crop_pct"])
    )
    return (int(channels), int(height), int(width)), preprocessing


def _example_logits(model: torch.nn.Module, example: torch.Tensor, timm_name: str) -> torch.Tensor:
    try:
        logits = model(example)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, example.shape[1:]))
        raise UsageError(
            f"'{timm_name}' does not take images of {size}: {_first_line(error)}", "set model.kwargs.img_size"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise UsageError(f"'{timm_name}' with these arguments is not a classifier", "check model.kwargs")
    return logits


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
