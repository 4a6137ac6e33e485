"""Dense accuracy of a fine-tuned DeiT-Tiny by the form of its checkpoint, and the time to check its images."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from paths import require_shared
from safetensors.torch import load_file, save_file

import vitslim
from vitslim.data.files.check import check_images
from vitslim.data.files.sets import list_sets
from vitslim.progress import Silent
from vitslim.recipe import load_recipe
from vitslim.recipe.schema import PIXELS_MAX, Data

MODEL = "deit_tiny_patch16_224"
RECIPE: Mapping[str, Any] = {
    "name": "own-data",
    "data": {"kind": "imagefolder", "calibration": 8},
    "stages": ["export"],
    "report": {"backends": ["sim:systolic"]},
}


def run() -> dict[str, float]:
    """Return the top-1 accuracy of each form of the checkpoint, and the seconds of the first and a later check."""
    images = require_shared("caltech101")
    with tempfile.TemporaryDirectory() as scratch:
        forms = write_forms(load_file(images / "deit_tiny_caltech101.safetensors"), {}, MODEL, Path(scratch))
        model = {"timm": MODEL, "kwargs": {}}
        return accuracies(forms, model, images, Path(scratch)) | check_seconds(images, Path(scratch))


def write_forms(
    state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any], model: str, folder: Path
) -> dict[str, Path]:
    """Write the weights as safetensors, as a file of distributed training, and as a folder of the Hub."""
    save_file(dict(state), folder / "plain.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "checkpoint.pth.tar")
    hub = folder / "hub"
    hub.mkdir()
    save_file(dict(state), hub / "model.safetensors")
    config = {"architecture": model, "model_args": dict(arguments)}
    (hub / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"safetensors": folder / "plain.safetensors", "pth_tar": folder / "checkpoint.pth.tar", "hub": hub}


def accuracies(forms: Mapping[str, Path], model: Mapping[str, Any], images: Path, scratch: Path) -> dict[str, float]:
    """Return top-1 of the dense model and of the exported file in percent, by the form of the checkpoint."""
    path, figures = scratch / "own-data.yaml", {}
    path.write_text(json.dumps({**RECIPE, "model": model}), encoding="utf-8")
    for form, checkpoint in forms.items():
        recipe = load_recipe(path, [f"data.root={images}", f"model.checkpoint={checkpoint}"])
        report = vitslim.run(recipe, scratch / f"out-{form}").report
        figures[f"{form}_top1"] = 100 * report.stages[0].accuracies[0].metrics["top1"]
        figures[f"{form}_onnx_top1"] = 100 * report.final_accuracies[0].metrics["top1"]
        figures[f"{form}_warnings"] = float(len(report.warnings))
    return figures


def check_seconds(images: Path, scratch: Path) -> dict[str, float]:
    """Return the number of images, and the seconds in which they are checked with and without an earlier result."""
    figures = {}
    for name in ("first_check_s", "later_check_s"):
        started = time.perf_counter()
        listed = list_sets(Data(kind="imagefolder", root=str(images)), None)
        found = check_images(listed, PIXELS_MAX, Silent(), scratch / "cache")
        figures[name] = time.perf_counter() - started
    return figures | {"images": float(sum(len(one.files) for one in found.values()))}
