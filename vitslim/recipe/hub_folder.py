"""Model folders in the layout of the Hugging Face Hub: `config.json` of timm beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from vitslim.errors import InputError
from vitslim.recipe.preprocessing import PreprocessingConfig

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
"""Names of the weights, the first that exists is read."""
LARGEST_BYTES = 10_000_000
"""Size above which `config.json` is refused."""
PROCESSOR = "preprocessor_config.json"
"""Preprocessing of a model of transformers."""
AGAIN = "download it again, or name the file with the weights"


class _Preprocessing(PreprocessingConfig):
    """The keys of `pretrained_cfg` that describe the preprocessing of images."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True)
class HubFolder:
    """The content of a model folder."""

    weights: Path
    architecture: str
    """timm name without the tag; empty if `config.json` does not name one."""
    arguments: Mapping[str, int | float | str | bool]
    """Arguments of timm.create_model."""
    preprocessing: Mapping[str, Any]
    """The values of mean, std, interpolation, crop_pct, crop_mode and input_size that the folder sets."""


def read_hub_folder(folder: Path) -> HubFolder:
    """Return the content of a model folder.

    Raises InputError if it has no weights, or a `config.json` that is missing, damaged or of unexpected types.
    """
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / CONFIG).is_file():
        missing = CONFIG if weights else WEIGHTS[0]
        message = f"checkpoint '{folder}' is a folder without {missing}"
        raise InputError(message, f"name the file with the weights, or a folder with {WEIGHTS[0]} and {CONFIG}")
    config = _read_config(folder / CONFIG)
    pretrained = config.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    arguments = config.get("model_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    return HubFolder(
        weights,
        str(config.get("architecture") or pretrained.get("architecture") or ""),
        {str(key): value for key, value in arguments.items() if isinstance(value, int | float | str | bool)},
        _preprocessing(folder / CONFIG, pretrained) | _of_processor(folder / PROCESSOR),
    )


def hub_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a model folder that decide on the model."""
    names = (*WEIGHTS, CONFIG, PROCESSOR)
    return tuple(folder / name for name in names if (folder / name).is_file())


def _of_processor(file: Path) -> dict[str, Any]:
    """Return mean and std of the preprocessing file of transformers; empty without one."""
    values = _read_config(file) if file.is_file() else {}
    names = {"mean": "image_mean", "std": "image_std"}
    return _preprocessing(file, {key: values[name] for key, name in names.items() if name in values})


def _preprocessing(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _Preprocessing.model_validate(values, strict=False).values()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"'{file}' has an invalid preprocessing: {where}: {first['msg']}", AGAIN) from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise InputError(f"'{file}' is larger than {LARGEST_BYTES // 10**6} MB", "use the file of the release")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{file}' is not a JSON file", AGAIN) from error
    if not isinstance(values, dict):
        raise InputError(f"'{file}' does not hold an object", AGAIN)
    return values
