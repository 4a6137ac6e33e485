"""Output, exit codes and side effects of the commands."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from vitslim import __version__
from vitslim.graph.model_graph import ModelGraph
from vitslim.stages.export.onnx_export import export_onnx

LIGHT = [("--help",), ("--version",), ("plan", "quickstart", "--no-trace"), ("recipes", "list"), ("recipes", "schema")]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_do_not_load_torch(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vitslim.cli.app", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not modules & {"torch", "timm", "onnx", "onnxruntime"}


def test_plan_prints_costs_and_writes_nothing(
    vitslim: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = vitslim("plan", "quickstart")
    assert outcome.code == 0
    for word in ("params", "MACs", "BOPs", "weights", "depgraph", "etps", "distill", "ptq", "onnx", "01-prune ~"):
        assert word in outcome.out
    assert not list(tmp_path.iterdir())


def test_plan_prints_json(vitslim: Callable[..., Any]) -> None:
    plan = json.loads(vitslim("plan", "quickstart", "--format", "json").out)
    assert [row["kind"] for row in plan["rows"]] == [
        "dense", "prune", "token-squeeze", "distill", "quantize", "export"
    ]  # fmt: skip
    macs = [row["cost"]["macs"] for row in plan["rows"]]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] >= 2 * macs[-1]


def test_set_changes_the_plan(vitslim: Callable[..., Any]) -> None:
    def params(*arguments: str) -> int:
        plan = json.loads(vitslim("plan", "quickstart", "--format", "json", *arguments).out)
        return int(plan["rows"][-1]["cost"]["params"])

    several = params("--set", "stages.0.prune.pruning_ratio=0.6", "stages.0.prune.mode=uniform")
    assert several < params("--set", "stages.0.prune.pruning_ratio=0.6") < params()


def test_bench_keeps_measured_and_simulated_apart(
    vitslim: Callable[..., Any], tiny_graph: ModelGraph, tmp_path: Path
) -> None:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    export_onnx(tiny_graph, files[0])
    shutil.copyfile(*files)
    options = ["--backend", "onnxruntime:cpu", "--backend", "sim:systolic", "--seconds", "0.1", "--batch", "2"]
    outcome = vitslim("bench", *files, *options)
    assert outcome.code == 0
    measured, _, simulated = outcome.out.partition("\nsimulated\n")
    assert "baseline" in measured
    assert "sim:" not in measured
    for words in ("calibration", "utilization", "SCALE-Sim v3.0.0", "DRAM stalls", "mlp.fc1"):
        assert words in simulated
    rows = json.loads(vitslim("bench", *files, *options, "--format", "json").out)["rows"]
    assert [row["measurements"][0]["batch"] for row in rows] == [2, 2]
    assert rows[0]["estimates"][0]["cycles"] == rows[1]["estimates"][0]["cycles"]


def test_axes_lists_and_verifies(vitslim: Callable[..., Any]) -> None:
    outcome = vitslim("axes", "deit_tiny_patch16_224", "--verify", "--format", "json")
    assert outcome.code == 0
    table = json.loads(outcome.out)
    assert sum(not axis["frozen"] for axis in table["axes"]) == 49
    assert table["verify"]["max_error"] < 1e-5
    assert table["prunable_share"] > 0.999
    shown = vitslim("axes", "deit_tiny_patch16_224")
    assert ["blocks.11.mlp", "768", "3"] in [line.split() for line in shown.out.splitlines()]
    assert "is part of the image" in shown.out
    assert "49 prunable axes; 99.98%" in shown.err


def test_recipes_show_and_validate(vitslim: Callable[..., Any], tmp_path: Path) -> None:
    shown = vitslim("recipes", "show", "quickstart")
    (tmp_path / "copy.yaml").write_text(shown.out)
    assert vitslim("recipes", "validate", tmp_path / "copy.yaml").code == 0
    started = vitslim("recipes", "new", "mine", "--timm", "vit_small_patch16_224")
    (tmp_path / "mine.yaml").write_text(started.out)
    assert vitslim("plan", tmp_path / "mine.yaml", "--no-trace").code == 0


def test_no_arguments_show_the_help(vitslim: Callable[..., Any]) -> None:
    outcome = vitslim()
    assert outcome.code == 0
    assert "Commands:" in outcome.out
    assert "hint:" in vitslim("recipes").err


def test_version_is_printed(vitslim: Callable[..., Any]) -> None:
    assert vitslim("--version").out.strip() == f"vitslim {__version__}"


RECIPE = """
name: tiny
model:
  timm: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2, num_classes: 10}
data: {kind: digits, calibration: 100, eval_images: 20}
stages:
  - distill: {train: {epochs: 4, batch: 20, images: 100}}
  - export
report: {backends: [sim:systolic], batches: [1]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def test_a_failed_gate_is_exit_code_one(vitslim: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
    keys = ("--set", "stages=[export]", "--set", "gates={size_ratio_min: 50}")
    outcome = vitslim("run", recipe, "--out", tmp_path / "out", *keys)
    assert outcome.code == 1
    assert "size_ratio_min" in outcome.err
    assert (tmp_path / "out" / "model.onnx").is_file()
    for output in ("table", "json", "markdown", "junit", "html"):
        assert "size_ratio_min" in vitslim("report", tmp_path / "out", "--format", output).out


def test_a_run_can_be_resumed_after_ctrl_c(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitslim.cli.app", "run", str(recipe), "--out", str(tmp_path / "out")]
    # Where tests run in the background SIGINT is ignored, and a child inherits that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:  # noqa: PLW1509  no threads here
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("· 01-distill"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "run the same command again to resume" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()
    stored = (path.name for path in (tmp_path / "out.stages").iterdir())
    assert [name[:8] for name in stored if not name.startswith(".")] == ["00-dense"]


@pytest.mark.slow
def test_a_killed_training_is_resumed(vitslim: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
    """After SIGKILL during distillation, the same command finishes it and removes its checkpoint."""
    command = ["run", str(recipe), "--out", str(tmp_path / "out")]
    stored = tmp_path / "out.stages"
    program = [sys.executable, "-m", "vitslim.cli.app", *command]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(stored.glob(".01-distill-*.kept/training.safetensors")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (kept,) = stored.glob(".01-distill-*.kept/training.safetensors")
    state = load_file(kept)
    state["history:seconds"][0] = 1000.0
    save_file(state, kept)
    again = vitslim(*command)
    assert again.code == 0, again.err
    assert re.search(r"distill: training continues after step (5|10|15) of 20", again.err)
    assert sorted(path.name.rpartition("-")[0] for path in stored.glob("[!.]*")) == [
        "00-dense",
        "01-distill",
        "02-export",
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert 1000 < report["stages"][1]["seconds"] < 2000
