"""Arms of `scripts/bench spatten` and `scripts/bench fact`: DeiT-Tiny on one setting of an accelerator.

An arm that finished is kept as a JSON row, so that an interrupted run continues.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from kept_model import folder_of, make_model
from paired_bootstrap import difference
from paths import SHARED, require_shared

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.data import DataModule, load_data
from vitslim.graph.approximate import approximate, run_approximation
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.results.accelerator_counts import Counts
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage
from vitslim.training.evaluate import predict
from vitslim.workload import Workload, read_workload

MODEL = "deit_tiny_patch16_224"
BATCH = 25
TRAIN = Train(epochs=3, batch=32, lr=5e-5, precision="auto")
"""Training under the approximations: on Imagenette without labels, with the dense model as teacher."""


@dataclass(frozen=True)
class Bench:
    """The dense model with its predictions, and the folder of the rows."""

    root: Path
    dense: ModelGraph
    data: DataModule
    workload: Workload
    exact: Mapping[str, torch.Tensor]
    """Evaluation set to predicted classes of the dense model."""

    def row(self, name: str, backend: dict[str, Any], trained: bool = False) -> dict[str, Any]:
        """Return the row of an arm: accuracy, work of each image, cycles and energy; kept from an earlier run."""
        folder = folder_of(self.root, name)
        kept = folder / "row.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
            return found
        folder.mkdir(parents=True, exist_ok=True)
        simulator = accelerator(backend)
        graph = self._trained(folder, simulator.approximation) if trained else self.dense
        found = {"settings": backend, "trained": trained} | self._evaluate(graph, simulator)
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return found

    def counts(self, backend: dict[str, Any], number: int) -> Counts:
        """Return the counts of the first images of a balanced part of the training set."""
        found = approximate(self.dense, accelerator(backend).approximation)
        images = self.data.train.balanced(number, 0).batches(BATCH)
        return run_approximation(found, (batch for batch, _ in images))[1]

    def time_ratio(self, backend: dict[str, Any], number: int = 100, rounds: int = 5) -> dict[str, float]:
        """Return the time of the approximated model over that of the FP32 model, in alternating passes."""
        found, dense = approximate(self.dense, accelerator(backend).approximation), self.dense.module.eval()
        batches = [images for images, _ in self.data.train.balanced(number, 0).batches(BATCH)]
        ratios = []
        with torch.inference_mode():
            for _ in range(rounds):
                start = perf_counter()
                for images in batches:
                    dense(images)
                middle = perf_counter()
                run_approximation(found, batches)
                ratios.append((perf_counter() - middle) / (middle - start))
        return {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios), "rounds": rounds}

    def _trained(self, folder: Path, settings: Any) -> ModelGraph:
        stage = make_stage(Distill(approximate=settings.name, loss=Loss(hard=0, soft=1), train=TRAIN))
        return make_model(folder / "model", self.dense, [stage], self.data, accelerator=settings).graph

    def _evaluate(self, graph: ModelGraph, simulator: Any) -> dict[str, Any]:
        found = approximate(graph, simulator.approximation)
        row: dict[str, Any] = {}
        counts: dict[str, Counts] = {}
        for name, dataset in {"val": self.data.val, **self.data.extra}.items():
            logits, counts[name] = run_approximation(found, (images for images, _ in dataset.batches(BATCH)))
            labels, classes = torch.as_tensor(dataset.labels), logits.argmax(dim=1)
            right, dense = (classes == labels).float(), (self.exact[name] == labels).float()
            row |= {f"top1_{name}": float(right.mean()), f"top1_change_{name}": difference(right, dense),
                    f"agreement_{name}": float((classes == self.exact[name]).float().mean())}  # fmt: skip
        values = simulator.per_image(self.workload, counts["val"])
        row["images"] = {name: _spread(one) for name, one in values.items()}
        start = perf_counter()
        estimate = simulator.estimate(self.workload, counts["val"])
        row["model_ms"] = 1e3 * (perf_counter() - start)
        return row | {"cycles": estimate.cycles, "latency_ms": estimate.latency_ms, "terms_ms": estimate.terms_ms,
                      "energy_mj": estimate.energy.total_mj, "energy_parts_mj": estimate.energy.parts_mj,
                      "settings_of_target": estimate.settings}  # fmt: skip


def accelerator(backend: dict[str, Any]) -> Any:
    """Return the simulator of a backend."""
    found = parse_backend(backend)
    assert isinstance(found, Simulated)
    return found.simulator


def prepare(root: Path) -> Bench:
    """Trace, export and evaluate the dense model."""
    dense = trace_timm(MODEL, {}, require_shared("deit_tiny") / "model.safetensors")
    data = load_data(Data(kind="imagefolder", root=str(require_shared("imagenette")), calibration=256,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    onnx = root / "dense.onnx"
    if not onnx.exists():
        export_onnx(dense, onnx)
    exact = {name: predict(dense.module.eval(), dataset, BATCH, Silent(), "")[0].argmax(dim=1)
             for name, dataset in {"val": data.val, **data.extra}.items()}  # fmt: skip
    return Bench(root, dense, data, read_workload(onnx), exact)


def _spread(values: Any) -> dict[str, float]:
    low, p10, median, p90, high = np.quantile(values, (0, 0.1, 0.5, 0.9, 1)).tolist()
    return {"mean": float(np.mean(values)), "min": low, "p10": p10, "median": median, "p90": p90, "max": high}


def within(rows: Mapping[str, Mapping[str, Any]], points: float = 1.0) -> list[str]:
    """Return the arms that lose at most this many points of top-1 on both sets."""
    sets = ("val", "samples")
    return [name for name, row in rows.items()
            if all(100 * row[f"top1_change_{one}"][0] >= -points for one in sets)]  # fmt: skip
