"""The input of a timm model: image size and preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.data.config import resolve_data_config

from vitslim.errors import UsageError
from vitslim.graph.model_graph import Preprocessing


def resolve_input(
    model: torch.nn.Module, kwargs: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[tuple[int, int, int], Preprocessing]:
    """Return image size (channels, height, width) and preprocessing of a timm model.

    `own` are values of a model folder, which override those that timm lists for pretrained weights. `kwargs.img_size`
    and `kwargs.in_chans` override the size, and `given`, the values of a recipe, override all of them; both have the
    keys of `PreprocessingConfig`. One mean or std is that of all channels; of the model's own values for other channels
    the average is. Raises UsageError for a given `input_size`, `mean` or `std` of other channels than the model's.
    """
    listed = {**model.pretrained_cfg, **own, **given}  # type: ignore[dict-item]  # a dict
    config = resolve_data_config(pretrained_cfg=listed)  # type: ignore[no-untyped-call]
    size = config["input_size"]
    channels = int(kwargs.get("in_chans") or size[0])
    height, width = size[1:]
    if kwargs.get("img_size") and "input_size" not in given:
        height = width = kwargs["img_size"]
    if size[0] != channels and "input_size" in given:
        message = f"the model takes {channels} channels, model.preprocessing.input_size has {size[0]}"
        raise UsageError(
            message, f"set model.kwargs.in_chans to {size[0]}, or the channels of input_size to {channels}"
        )
    mean, std = (_for_channels(key, config[key], channels, key in given) for key in ("mean", "std"))
    preprocessing = Preprocessing(mean, std, config["interpolation"], float(config["crop_pct"]), config["crop_mode"])
    return (channels, int(height), int(width)), preprocessing


def _for_channels(key: str, values: tuple[float, ...], channels: int, is_given: bool) -> tuple[float, ...]:
    """Return one value for each channel."""
    if len(values) == channels:
        return tuple(map(float, values))
    if is_given and len(values) > 1:
        message = f"the model takes {channels} channels, model.preprocessing.{key} has {len(values)} values"
        raise UsageError(message, f"set model.preprocessing.{key} to {channels} values, or to one for all channels")
    return (math.fsum(values) / len(values),) * channels
