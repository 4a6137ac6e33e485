"""The models of the timm tables: the smallest of each timm module, and a list of the vision-transformer family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from rich.progress import track
from timm.models import get_pretrained_cfg_value

from vitslim.errors import VitslimError

Row = dict[str, Any]

CLASSES = 1000
VIT_FAMILY = Path(__file__).with_name("vit_family.txt")


def vit_family() -> list[str]:
    """Return at least one model of every vision-transformer architecture in timm."""
    return VIT_FAMILY.read_text(encoding="utf-8").split()


def smallest_models(cache: Path) -> dict[str, str]:
    """Return the model with the fewest parameters of each timm module.

    Building all models takes minutes, so the result is kept in `cache`.
    """
    if cache.exists():
        return dict(line.split(",") for line in cache.read_text(encoding="utf-8").splitlines()[1:])
    found = {}
    for module in track(sorted(timm.list_modules()), "smallest model of each timm module"):
        names = timm.list_models(module=module)
        if names:
            found[module] = min(names, key=lambda name: (_parameters(name), name))
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("\n".join(["module,model", *(f"{key},{name}" for key, name in found.items())]) + "\n")
    return found


def classifier_for(name: str) -> dict[str, int]:
    """Return the arguments that add a classifier to a model without one; empty for other models.

    Without a classifier, the output channels could not be pruned.
    """
    return {} if get_pretrained_cfg_value(name, "num_classes") else {"num_classes": CLASSES}


def _parameters(name: str) -> int:
    """Return the number of parameters; 2**62 for a model that cannot be built on the meta device."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError, TypeError):
        return 2**62
    return sum(weight.numel() for weight in model.parameters())


def filled_row(model: str, fill: Callable[[Row, str], None]) -> Row:
    """Return the row of one model: `stage` is the last step that `fill` began, `error` the reason if it failed."""
    row: Row = {"model": model, "stage": "trace"}
    try:
        fill(row, model)
        row |= {"stage": "done", "error": ""}
    except VitslimError as error:
        row["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - the row reports every failure
        row["error"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return row
