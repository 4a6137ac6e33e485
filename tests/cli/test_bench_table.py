"""`vitslim bench --table`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.pipeline.table_file import read_table

TINY = ["img_size=32", "patch_size=8", "embed_dim=64", "depth=1", "num_heads=2", "num_classes=10"]
ARGUMENTS = ("--table", "vit_tiny_patch16_224", *(part for pair in TINY for part in ("--kwargs", pair)))
SIMULATED = ("--backend", "sim:systolic")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tables out of the user's cache, and fit them to two pruned models only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("vitslim.pipeline.bench.latency_table.MODELS", 2)


def test_a_table_is_written_and_summarized(
    vitslim: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = vitslim("bench", *ARGUMENTS, *SIMULATED)
    assert outcome.code == 0
    for word in ("simulated", "linear entries", "dense model", "other operators"):
        assert word in outcome.out
    (path,) = tmp_path.iterdir()
    assert path.name == "vit_tiny_patch16_224.sim-systolic.table.json"
    assert read_table(path).kwargs["depth"] == 1
    shown = vitslim("bench", *ARGUMENTS, *SIMULATED, "--batch", 4, "--out", "other.json", "--format", "json").out
    assert json.loads(shown) == json.loads((tmp_path / "other.json").read_text())
    assert json.loads(shown)["batch"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no files to measure"),
        (("a.onnx", *ARGUMENTS), 2, "cannot be combined"),
        (("a.onnx", "--out", "x"), 2, "--out needs --table"),
        (("a.onnx", "--kwargs", "a=1"), 2, "--kwargs needs --table"),
        (("a.onnx", "--precision", "int8"), 2, "--precision needs --table"),
        (("a.onnx", "--cache", "x"), 2, "--cache needs --table"),
        ((*ARGUMENTS, "--seconds", "1"), 2, "does not use --seconds"),
        ((*ARGUMENTS, "--batch", "1", "--batch", "2"), 2, "one --batch"),
        ((*ARGUMENTS, "--backend", "sim:systol"), 2, "did you mean 'systolic'"),
        ((*ARGUMENTS, "--kwargs", "depth=[1]"), 2, "--kwargs depth needs a number"),
        ((*ARGUMENTS, "--kwargs", "depht=1"), 2, "depht"),
        (("--table", "vit_tiny_patch16_22"), 2, "did you mean 'vit_tiny_patch16_224'"),
        (("--table", "../x"), 2, "not the name of a timm model"),
        ((*ARGUMENTS, "--out", "nowhere/x.json"), 5, "cannot be written"),
        ((*ARGUMENTS, "--out", "."), 5, "is a folder"),
    ],
)
def test_wrong_input(
    vitslim: Callable[..., Any],
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = vitslim("bench", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert "hint:" in outcome.err
    assert not list(tmp_path.iterdir())
