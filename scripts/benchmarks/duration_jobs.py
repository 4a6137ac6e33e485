"""Recipes of the benchmark `time`: what is timed, on which models, and how the time grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paths import SHARED

EVALUATED = 1000
WEIGHTS = {"deit_tiny_patch16_224": str(SHARED / "deit_tiny" / "model.safetensors")}
"""Model to its checkpoint; the others have random weights, which change no duration but that of a search."""
MODELS = {
    "DeiT-T": "deit_tiny_patch16_224",
    "DeiT-S": "deit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ViT-B": "vit_base_patch16_224",
}
PTQ, DISTILLATION = "PTQ", "distillation, 1 epoch of 1,000 images"
QUANTIZERS = ("ORT quantize_static", "ORT quantize_dynamic", "NNCF quantize")
"""Other tools for the step `PTQ`."""
PRUNER = "Torch-Pruning, half of the channels"
NO_FLOOR = {"sqnr_db": 0.0, "agreement": 0.0}
"""A search over a model with random weights must not fail."""


@dataclass(frozen=True)
class Job:
    """One row: a run of vitslim by a recipe, or another tool on the dense file of a model."""

    name: str
    model: str
    recipe: dict[str, Any] | None
    """None for another tool."""
    tool: str = ""
    candidates: int = 0
    """Largest number of candidates of a placement search; 0: that of vitslim."""


def steps(model: str) -> dict[str, list[Any]]:
    """Return the stages of each timed step of a model."""
    export = {"export": {"profile": "ort-cpu"}}
    found: dict[str, list[Any]] = {PTQ: [{"quantize": {"method": "ptq"}}, export]}
    if model == "ViT-B":
        return found
    search: dict[str, Any] = {"method": "ptq", "placement": "auto"}
    search |= {} if MODELS[model] in WEIGHTS else {"floor": NO_FLOOR}
    distill = {"teacher": "dense", "loss": {"hard": 0}, "train": {"epochs": 1, "images": 1000, "batch": 32}}
    return found | {
        "PTQ, placement search": [{"quantize": search}, export],
        "2:4 by K-FAC": [{"prune": {"method": "two-four", "score": "kfac"}}, "export"],
        DISTILLATION: [{"distill": distill}, "export"],
        "evaluation of 1,000 images": ["export"],
        "depgraph, half of the channels": [{"prune": {"method": "depgraph", "pruning_ratio": 0.5}}, "export"],
    }


def compared_jobs() -> Iterator[Job]:
    """Yield the rows of all models: every step of vitslim, then the other tools on the dense file of `PTQ`."""
    for model in MODELS:
        for step, stages in steps(model).items():
            yield Job(f"{model}, {step}", model, _recipe(model, step, stages))
        for tool in (*QUANTIZERS, *((PRUNER,) if model != "ViT-B" else ())):
            yield Job(f"{model}, {tool}", model, None, tool)


def _recipe(model: str, step: str, stages: list[Any]) -> dict[str, Any]:
    """Return a recipe that evaluates 1,000 images of DeiT-T, and where the evaluation is timed; else 100."""
    images = EVALUATED if model == "DeiT-T" or step.startswith("evaluation") else EVALUATED // 10
    timm = MODELS[model]
    return {
        "name": "timed",
        "model": {"timm": timm, "checkpoint": WEIGHTS[timm]} if timm in WEIGHTS else {"timm": timm},
        "data": {"kind": "imagefolder", "root": str(SHARED / "imagenette"), "calibration": 256, "eval_images": images},
        "stages": stages,
        "report": {"backends": ["onnxruntime:cpu"]},
    }


GROWTH: dict[str, tuple[dict[str, int], ...]] = {
    "tokens": ({"img_size": 160}, {"img_size": 224}, {"img_size": 320}),
    "width": ({"embed_dim": 192}, {"embed_dim": 384}, {"embed_dim": 768}),
    "depth": ({"depth": 6}, {"depth": 12}, {"depth": 24}),
    "images": ({"calibration": 64}, {"calibration": 128}, {"calibration": 256}),
    "candidates": ({"candidates": 4}, {"candidates": 6}, {"candidates": 8}),
}
"""Quantity to what is changed in a ViT-Tiny with 64 calibration images."""
OTHER_KEYS = {"calibration", "candidates"}
"""Changes that are not arguments of the model."""
NO_CANDIDATE: dict[str, Any] = {"placement": "auto", "floor": {"sqnr_db": 99.0, "agreement": 1.0}}
"""A search that no candidate ends."""


def growth_jobs() -> Iterator[Job]:
    """Yield post-training quantization of models of growing size, on digits, which need no decoding."""
    for quantity, changes in GROWTH.items():
        for change in changes:
            (value,) = change.values()
            kwargs = {"num_classes": 10} | {key: one for key, one in change.items() if key not in OTHER_KEYS}
            quantize = {"method": "ptq"} | (NO_CANDIDATE if "candidates" in change else {})
            recipe = {
                "name": "growing",
                "model": {"timm": "vit_tiny_patch16_224", "kwargs": kwargs},
                "data": {"kind": "digits", "calibration": change.get("calibration", 64), "eval_images": 10},
                "stages": [{"quantize": quantize}, {"export": {"profile": "ort-cpu"}}],
                "report": {"backends": ["onnxruntime:cpu"], "seconds": 0.1},
            }
            candidates = change.get("candidates", 0)
            yield Job(f"growth of {quantity}: {value}", "growth", recipe, candidates=candidates)
