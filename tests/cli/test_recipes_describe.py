"""`vitslim recipes describe`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vitslim.recipe import describe_methods


def test_without_a_method_all_methods_are_listed(vitslim: Callable[..., Any]) -> None:
    outcome = vitslim("recipes", "describe")
    assert outcome.code == 0
    for info in describe_methods():
        assert info.method in outcome.out


@pytest.mark.parametrize("width", [80, 160])
def test_no_word_is_truncated(vitslim: Callable[..., Any], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for info in describe_methods():
        outcome = vitslim("recipes", "describe", info.method)
        assert outcome.code == 0
        assert "…" not in outcome.out
        assert info.example in outcome.out
        words = outcome.out.split()
        for key in info.keys:
            assert key.key.rpartition(".")[2] in words
            assert set(key.description.split()) <= set(words)


def test_assumed_defaults_are_marked(vitslim: Callable[..., Any]) -> None:
    out = vitslim("recipes", "describe", "etps").out
    assert "ceil*" in out
    assert "* assumed: no source confirms this default" in out
    assert "assumed" not in vitslim("recipes", "describe", "two-four").out


def test_json_holds_the_same_keys(vitslim: Callable[..., Any]) -> None:
    (info,) = json.loads(vitslim("recipes", "describe", "two-four", "--format", "json").out)
    pattern = next(entry for entry in info["keys"] if entry["key"] == "pattern")
    assert (info["kind"], info["method"], pattern["default"]) == ("prune", "two-four", "2:4")


def test_an_unknown_method_is_bad_usage(vitslim: Callable[..., Any]) -> None:
    outcome = vitslim("recipes", "describe", "depgrph")
    assert outcome.code == 2
    assert "did you mean 'depgraph'?" in outcome.err


def test_describe_does_not_import_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vitslim.cli.app", "recipes", "describe", "ptq"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not modules & {"torch", "timm", "onnx", "onnxruntime"}
