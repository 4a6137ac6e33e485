"""Targets that need PyTorch: checkpoints, training states, saved graphs, and results of runs."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import mutations
import numpy as np
import torch
from safetensors.torch import save
from targets import Documents, Files
from torch import nn

from vitslim.files import MANIFEST_FILE
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.saved import GRAPH_FILE, WEIGHTS_FILE, load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.trace.checkpoint.entries import choose_entry, strip_prefixes
from vitslim.graph.trace.checkpoint.formats import is_flax, read_checkpoint, read_flax
from vitslim.pipeline.run.stored.artifact import load_artifact
from vitslim.pipeline.table_file import read_table
from vitslim.report import parse_report, render_html, render_json, render_markdown
from vitslim.results import Cost, Environment, LatencyTable, Measurement, Report, StageRecord
from vitslim.training.checkpoint import STATE_FILE, Checkpoint

TENSORS = {"head.weight": torch.arange(12.0).reshape(3, 4), "head.bias": torch.zeros(3, dtype=torch.float16)}
MODEL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}


def checkpoints(folder: Path) -> Files:
    """Checkpoints of every format."""
    samples = [save(TENSORS)]
    for content in (TENSORS, {"state_dict": TENSORS, "epoch": 3, "args": {"lr": 0.1}}):
        for is_archive in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=is_archive)
            samples.append(file.getvalue())
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, **{"head/bias": np.zeros(3, np.float32), "a": np.arange(5.0)})
        samples.append(file.getvalue())
    samples.append(pickle.dumps({"a": 1}))

    def read(path: Path) -> None:
        if is_flax(path):
            read_flax(path)
        else:
            strip_prefixes(choose_entry(read_checkpoint(path), None, path)[0], TENSORS)

    return Files(folder / "weights.pth", samples, read)


def training_states(folder: Path) -> Files:
    """States of an interrupted training."""
    layer = nn.Linear(4, 3)
    parameters = dict(layer.named_parameters())
    optimizer = torch.optim.AdamW(layer.parameters())
    state = {f"weight:{name}": weight.detach() for name, weight in parameters.items()}
    for key in ("step", "exp_avg", "exp_avg_sq"):
        state |= {f"{key}:{n}": torch.tensor(3.0) if key == "step" else w.detach() for n, w in parameters.items()}
    state["history:loss"] = torch.tensor([1.0, 0.5])

    def read(path: Path) -> None:
        Checkpoint(path.parent, parameters, optimizer, {}).load()

    return Files(folder / STATE_FILE, [save({name: one.clone() for name, one in state.items()})], read)


class SavedGraphs(Documents):
    """Folders of finished stages: a changed list of edits, or changed tensors."""

    def __init__(self, folder: Path) -> None:
        graph = trace_timm("vit_tiny_patch16_224", MODEL)
        dense = sketch(graph)
        axis = next(axis for axis, kind in dense.kinds.items() if kind == "mlp")
        graph = insert_squeeze(slice_axes(graph, {axis: range(32)}), {dense.blocks[0]: 2})
        save_graph(graph, folder)
        document = json.loads((folder / GRAPH_FILE).read_text())
        super().__init__(folder / GRAPH_FILE, [document], lambda path: load_graph(path.parent))
        self.weights = (folder / WEIGHTS_FILE).read_bytes()

    def make(self, random: Random) -> None:
        """Write a folder."""
        weights = self.path.with_name(WEIGHTS_FILE)
        weights.write_bytes(self.weights)
        if random.random() < 0.2:
            self.path.write_bytes(self.samples[0])
            weights.write_bytes(mutations.mutated_bytes(self.weights, random))
            return
        super().make(random)


def reports(folder: Path) -> Documents:
    """Reports, which every renderer must then print, and manifests of runs."""
    cost = Cost(params=1000, macs=2000, bops=10, weight_bytes=4000, device_bytes=4000)
    measured = Measurement(backend="onnxruntime:cpu", batch=1, threads=1, median_ms=1.0, spread_ms=0.1, n=9)
    stages = tuple(
        StageRecord(name=name, kind="k", method="m", seconds=0.0, key="", cost=cost, onnx_bytes=9, measurements=(one,))
        for name, one in (("00-dense", measured), ("01-export", measured.model_copy(update={"speedup": 1.1})))
    )
    report = Report(
        name="r", model="vit", dataset="digits", seed=0, created="2025-01-01T00:00:00+00:00", stages=stages,
        environment=Environment(device="a CPU", cores=1, versions={}),
    )  # fmt: skip
    manifest = {"files": {"report.json": "0" * 64, "model.onnx": "1" * 64}, "model_file": "model.onnx"}

    def read(path: Path) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        if '"model_file"' in text and '"stages"' not in text:
            path.rename(path.with_name(MANIFEST_FILE))
            load_artifact(path.parent)
        found = parse_report(text)
        for render in (render_html, render_json, render_markdown):
            render(found)

    return Documents(folder / "report.json", [json.loads(render_json(report)), manifest], read)


def tables(folder: Path) -> Documents:
    """Latency tables, and a look-up in those that are read."""
    grid = {"counts": [1], "rows": [8], "reduce": [8, 16], "columns": [8, 16], "ms": [1.0, 2.0, 3.0, 6.0]}
    table = LatencyTable.model_validate({
        "model": "vit", "backend": "sim:systolic", "kind": "simulated", "batch": 1, "threads": None, "n": 0,
        "environment": {"device": "a CPU", "cores": 1, "versions": {}}, "spread": 0.0, "dense_ms": 9.0, "rest_ms": 1.0,
        "token_ms": 0.5, "squeeze_ms": 0.1, "matmuls": {"linear": grid, "attention": grid}, "fixed_ms": 0.5,
    })  # fmt: skip

    def read(path: Path) -> None:
        read_table(path).matmul_ms((1, 8, 12, 12), False)

    return Documents(folder / "vit.table.json", [json.loads(table.model_dump_json())], read)
