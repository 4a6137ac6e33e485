"""Recipes that `plan` refuses before it imports torch."""

from __future__ import annotations

import json
from typing import Any


def recipe(**changes: Any) -> bytes:
    document = {
        "name": "x",
        "model": {"timm": "deit_tiny_patch16_224"},
        "data": {"kind": "digits"},
        "stages": ["export"],
    }
    return json.dumps(document | changes).encode()


def stages(*entries: Any) -> bytes:
    return recipe(stages=[*entries, "export"])


RECIPES: dict[str, tuple[bytes, str]] = {
    "recipe-empty": (b"", "the file is empty"),
    "recipe-not-text": (b"\xff\xfe\x00", "the file is not UTF-8 text"),
    "recipe-list": (b"- a\n", "got a list, expected a mapping with keys such as name, model, data and"),
    "recipe-syntax": (b"name: [1\n", "line 2, column 1: not valid YAML: expected ',' or ']', but got '<stream"),
    "recipe-tag": (
        b"name: !!python/object:os.system x\n",
        "line 1, column 7: the tag 'tag:yaml.org,2002:python/object:os.system':",
    ),
    "recipe-anchor": (b"name: &a x\nb: *a\n", "line 1, column 7: the anchor '&a': anchors and aliases are not allowed"),
    "recipe-duplicate": (b"name: x\nname: y\n", "line 2, column 1: the key 'name' occurs twice"),
    "recipe-deep": (b"name: " + b"[" * 30 + b"]" * 30, "line 1, column 27: nested deeper than 20 levels"),
    "recipe-large": (b"#" * 1_000_001, "the file is larger than 1 MB"),
    "recipe-two-documents": (b"a: 1\n---\nb: 2\n", "line 2, column 1: a second document begins"),
    "recipe-control": (b'name: "\\u0000"\n', "name: got '\\x00', expected lower-case letters, digits, '.', '_' and"),
    "unknown-key": (recipe(modell=1), "modell: unknown key"),
    "missing-stages": (
        b"name: x\nmodel: {timm: deit_tiny_patch16_224}\ndata: {kind: digits}\n",
        "stages: required key missing, expected a list of stages",
    ),
    "stages-text": (recipe(stages="export"), "stages: got 'export', expected a list of stages"),
    "stage-unknown": (stages("prun"), "stages.0: got 'prun', expected a stage kind"),
    "stage-two-kinds": (
        stages({"prune": {"method": "depgraph"}, "distill": {}}),
        "stages.0: expected one stage kind, got 2 keys ('prune', 'distill')",
    ),
    "stage-method": (
        stages({"prune": {"method": "depgrap"}}),
        "stages.0.prune.method: got 'depgrap', expected one of 'depgraph',",
    ),
    "stage-key": (stages({"quantize": {"method": "ptq", "bitz": 8}}), "stages.0.quantize.bitz: unknown key"),
    "stage-value-nan": (
        stages({"prune": {"method": "depgraph", "pruning_ratio": float("nan")}}),
        "stages.0.prune.pruning_ratio: got 'NaN', expected a number from 0 to",
    ),
    "stage-value-text": (
        stages({"prune": {"method": "depgraph", "pruning_ratio": "half"}}),
        "stages.0.prune.pruning_ratio: got 'half', expected a number from 0 to",
    ),
    "stage-value-range": (
        stages({"prune": {"method": "depgraph", "pruning_ratio": 1.5}}),
        "stages.0.prune.pruning_ratio: got 1.5, expected a number from 0 to",
    ),
    "stage-order": (
        stages({"quantize": {"method": "ptq"}}, {"prune": {"method": "depgraph"}}),
        "stages.1.prune: structural pruning must come before quantize: it",
    ),
    "stage-after-export": (
        recipe(stages=["export", {"distill": {}}]),
        "stages.0.export: export must be the last stage, but distill comes after",
    ),
    "stage-no-export": (
        recipe(stages=[{"distill": {}}]),
        "stages: there is no export stage, so the run would write no model",
    ),
    "teacher-unknown": (
        stages({"distill": {"teacher": "nobody"}}),
        "stages.0.distill.teacher: got 'nobody', expected the name of an earlier",
    ),
    "name-capital": (recipe(name="X Y"), "name: got 'X Y', expected lower-case letters, digits, '.', '_' and '-',"),
    "name-path": (recipe(name="../x"), "name: got '../x', expected lower-case letters, digits, '.', '_' and"),
    "seed-large": (recipe(seed=2**32), "seed: got 4294967296, expected an integer from 0 to 4294967295"),
    "seed-negative": (recipe(seed=-1), "seed: got -1, expected an integer from 0 to 4294967295"),
    "kwargs-object": (
        recipe(model={"timm": "deit_tiny_patch16_224", "kwargs": {"a": {"b": 1}}}),
        "model.kwargs.a: got a mapping, expected an integer or a number or text",
    ),
    "model-missing": (recipe(model={}), "model.timm: required key missing, expected the name of a timm model, or"),
    "data-kind": (recipe(data={"kind": "folder"}), "data.kind: got 'folder', expected one of 'digits', 'imagefolder'"),
    "backend-unknown": (
        recipe(report={"backends": ["onnxruntime:cpuu"]}),
        "report.backends.0: got 'onnxruntime:cpuu', expected a backend such as",
    ),
    "batch-zero": (recipe(report={"batches": [0]}), "report.batches.0: got 0, expected an integer above 0"),
    "batches-none": (
        recipe(report={"batches": []}),
        "report.batches: got an empty list, expected a list with at least one",
    ),
    "seconds-zero": (recipe(report={"seconds": 0}), "report.seconds: got 0, expected a number above 0"),
    "gate-unknown": (recipe(gates={"top2_min": 1}), "gates.top2_min: unknown key"),
    "gate-range": (recipe(gates={"top1_min": 101}), "gates.top1_min: got 101, expected a number from 0 to 100"),
    "gate-backend": (
        recipe(gates={"speedup_min": {"openvino:cpu": 2}}),
        "gates.speedup_min.openvino:cpu: the gate needs a result of",
    ),
    "gate-batch": (
        recipe(gates={"latency_ms_max": {"onnxruntime:cpu, batch 4": 2}}),
        "gates.latency_ms_max.onnxruntime:cpu, batch 4: the gate needs batch 4,",
    ),
    "gate-memory": (
        recipe(gates={"peak_memory_mb_max": {"onnxruntime:cpu": 50}}),
        "gates.peak_memory_mb_max: the report measures no memory",
    ),
    "extends-missing": (recipe(extends="nothing.yaml"), "extends: there is no recipe 'nothing.yaml'"),
    "extends-self": (recipe(extends="r.yaml"), "extends: recipes extend each other in a circle: r.yaml -> r.yaml"),
    "export-opset": (
        recipe(stages=[{"export": {"opset": 3}}]),
        "stages.0.export.opset: got 3, expected an integer from 17 to 23",
    ),
}
"""Recipes that `plan` refuses with exit code 2: the file, and a part of the message."""
