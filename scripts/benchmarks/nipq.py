"""Learned bits (NIPQ) beside LSQ with the same steps, the cost of a step, W4A4 without training, and FP8 beside INT8.

Tasks: Caltech-101 with labels, Imagenette without labels, and handwritten digits with three seeds. Every method trains
and calibrates on training images and is judged on validation images. Models, logits and training states are kept in
runs/nipq-bench, so that an interrupted run continues; delete the folder to start again. Takes about six hours on two
idle cores. Needs the folder that VITSLIM_SHARED_DATA names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from caltech import MODEL, caltech
from nipq_arms import ABLATIONS, COMPARED, LEARNED, LOWER, Arm, Task, lsq, nipq
from nipq_post_training import PUBLISHED, post_training_rows
from nipq_rows import task_rows
from nipq_step import step_rows
from paths import RESULTS, ROOT, RUNS, SHARED, require_shared
from result_file import write_result

from vitslim.data import load_data
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import BitTarget
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.stages.registry import make_stage

FOLDER, RESULT, TRAINED = RUNS / "nipq-bench", RESULTS / "nipq.json", RESULTS / "nipq-trained.json"
UNTRAINED = ("step", "post-training")
"""Parts of the first result file; the trained tasks are in the second."""
DIGITS = {"img_size": 32, "patch_size": 4, "in_chans": 1, "depth": 4, "num_classes": 10}
SEEDS = (0, 1, 2)
TRAIN = Train(epochs=4, batch=32, lr=1e-4, precision="auto")
DIGITS_TRAIN = Train(epochs=4, batch=32, lr=1e-4)
"""In float32: bfloat16 does not make such small matmuls faster."""


def run() -> dict[str, float]:
    """Write scripts/results/nipq.json and nipq-trained.json; return top-1, agreement, and the cost of a step."""
    parts: dict[str, dict[str, Any]] = {}
    for part, rows in _parts():
        found = parts.setdefault(part, {})
        for name, row in rows:
            print(json.dumps({f"{part}: {name}": row}), flush=True)
            found[name] = row
            _write(parts)
    shown = ("top1_val", "agreement_val", "time_over_lsq", "memory_over_lsq")
    return {f"{part}: {name} {key}": row[key] for part, rows in parts.items() for name, row in rows.items()
            for key in shown if key in row}  # fmt: skip


def _write(parts: dict[str, dict[str, Any]]) -> None:
    write_result(RESULT, published=PUBLISHED, **{name: parts[name] for name in UNTRAINED if name in parts})
    trained = {name: rows for name, rows in parts.items() if name not in UNTRAINED}
    if trained:
        diverged = sum(bool(one.get("diverged")) for rows in trained.values() for one in rows.values())
        write_result(TRAINED, diverged=diverged, rows=trained)


def _parts() -> Iterator[tuple[str, Iterable[tuple[str, dict[str, Any]]]]]:
    yield "step", step_rows()
    yield "post-training", post_training_rows(FOLDER / "post-training")
    for seed in SEEDS:
        task = digits_task(seed)
        yield f"digits, seed {seed}", task_rows(FOLDER / f"digits-{seed}", task, COMPARED | ABLATIONS)
    caltech = caltech_task()
    yield "caltech", task_rows(FOLDER / "caltech", caltech, COMPARED | LOWER)
    yield "caltech, deployed", task_rows(FOLDER / "deployed", caltech, deployed_arms(caltech), in_file=True)
    arms = {name: COMPARED[name] for name in ("LSQ 4", LEARNED)}
    yield "imagenette", task_rows(FOLDER / "imagenette", imagenette_task(), arms)


def caltech_task() -> Task:
    """Return DeiT-Tiny with the 100 classes of Caltech-101, with labels and the dense model as teacher."""
    dense, data = caltech()
    return Task("caltech", dense, data, Loss(hard=1, soft=1), TRAIN)


def imagenette_task() -> Task:
    """Return DeiT-Tiny with the 1,000 classes of ImageNet on the images of Imagenette, without labels."""
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    data = load_data(Data(kind="imagefolder", root=str(require_shared("imagenette")), calibration=256,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    return Task("imagenette", dense, data, Loss(hard=0, soft=1), TRAIN)


def digits_task(seed: int) -> Task:
    """Return the small ViT of the quickstart. Its few elements need a stronger pull to the target."""
    weights: Path = ROOT / "recipes" / "quickstart.safetensors"
    dense = trace_timm("vit_tiny_patch16_224", dict(DIGITS), weights)
    data = load_data(Data(kind="digits", calibration=256), dense.source, 0)
    return Task("digits", dense, data, Loss(hard=1, soft=1), DIGITS_TRAIN, bit_loss=3.0, seed=seed)


def deployed_arms(task: Task) -> dict[str, Arm]:
    """Return uniform W4A8 with the first and the last layer in INT8, and learned widths within the same size."""
    uniform = lsq(4, activation_bits=8, first_last_bits=8, attention=False, smooth=True, rounding="gptq")
    size = make_stage(uniform(task, {})).estimate(sketch(task.dense)).cost().weight_bytes / 1e6
    keys: dict[str, Any] = {"bits": (4, 8), "activation_bits": 8, "attention": False}
    return {"uniform W4A8": uniform, "nipq-deploy": nipq(target=BitTarget(size_mb=size), **keys)}
