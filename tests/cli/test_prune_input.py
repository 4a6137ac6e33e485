"""Wrong keys of `prune: {method: depgraph}`: exit code 2, one sentence and a hint, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import RecipeError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.pipeline.plan import estimate_stages
from vitslim.recipe import load_recipe

RECIPE = """
name: test
model:
  timm: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2, num_classes: 10}
data: {kind: digits, calibration: 8}
stages:
  - prune: {method: depgraph, KEYS}
  - export
"""

WITHOUT_THE_MODEL = [
    ("pruning_ratio: 1", ["stages.0.prune.pruning_ratio", "got 1", "from 0 to below 1"]),
    ("pruning_ratio: [0.5, 1.0]", ["stages.0.prune.pruning_ratio.1", "got 1", "from 0 to below 1"]),
    ("pruning_ratio: half", ["stages.0.prune.pruning_ratio", "got 'half'"]),
    ("pruning_ratios: {mpl: 0.5}", ["pruning_ratios.mpl", "allowed: embed, head_dim, heads, mlp"]),
    ("scope: globl", ["'globl'", "did you mean 'global'"]),
    ("steps: 0", ["stages.0.prune.steps", "got 0", "above 0"]),
    ("budget: {}", ["stages.0.prune.budget", "none of them", "exactly one of macs, params and latency"]),
    ("budget: {macs: 0.5, params: 0.5}", ["stages.0.prune.budget", "got macs and params"]),
    ("budget: {macs: 0}", ["stages.0.prune.budget.macs", "above 0"]),
    ("budget: {latency: 0.5}", ["stages.0.prune.budget.table", "needs a latency table", "bench --table"]),
    ("budget: {macs: 0.5, table: t.json}", ["budget.table", "a latency table without `latency`"]),
    ("mode: bottleneck, pruning_ratios: {embed: 0.5}", ["pruning_ratios.embed", "bottleneck"]),
    ("importance: lamb", ["stages.0.prune.importance", "'lamb'", "did you mean 'lamp'"]),
    ("normalization: max", ["normalization", "unknown key"]),
    ("reduction: max", ["reduction", "unknown key"]),
]

WITH_THE_MODEL = [
    ("pruning_ratio: 0", ["stages.0.prune.pruning_ratio", "nothing can be pruned", "removes none"]),
    ("round_to: 512", ["stages.0.prune", "nothing can be pruned", "steps of"]),
    ("pruning_ratio: [0.5, 0.5, 0.5]", ["stages.0.prune.pruning_ratio", "got 3 entries", "2 blocks", "a list of 2"]),
    ("pruning_ratio: []", ["stages.0.prune.pruning_ratio", "got 0 entries", "2 blocks"]),
    ("axes: {blocks.0.mpl: 0.5}", ["no axis 'blocks.0.mpl'", "did you mean 'blocks.0.mlp'"]),
    ("axes: {nonsense: 0.5}", ["no axis 'nonsense'", "`vitslim axes` shows"]),
    ("axes: {classes: 0.5}", ["'classes' cannot be cut: it"]),
    ("budget: {macs: 0.01}", ["stages.0.prune.budget.macs", "0.01 of the MACs cannot be reached", "remains"]),
    (
        "budget: {params: 0.5}, max_pruning_ratio: 0.1",
        ["stages.0.prune.budget.params", "cannot be reached", "max_pruning_ratio"],
    ),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(keys: str) -> Path:
        path = tmp_path / "test.yaml"
        path.write_text(RECIPE.replace("KEYS", keys))
        return path

    return write


def expect(outcome: Any, expected: list[str]) -> None:
    assert outcome.code == 2, outcome.err
    text = " ".join(outcome.err.split())
    for words in expected:
        assert words in text, words
    # A value out of its range needs no hint: the sentence names the range.
    assert "hint:" in text or "expected" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(("keys", "expected"), WITHOUT_THE_MODEL, ids=[keys for keys, _ in WITHOUT_THE_MODEL])
def test_invalid_keys_are_refused_without_a_model(
    vitslim: Callable[..., Any], recipe: Callable[[str], Path], keys: str, expected: list[str]
) -> None:
    expect(vitslim("plan", recipe(keys), "--no-trace"), expected)


@pytest.mark.parametrize(("keys", "expected"), WITH_THE_MODEL, ids=[keys for keys, _ in WITH_THE_MODEL])
def test_keys_that_do_not_fit_the_model_are_refused(
    tiny_session_graph: ModelGraph, recipe: Callable[[str], Path], keys: str, expected: list[str]
) -> None:
    with pytest.raises(RecipeError) as error:
        estimate_stages(load_recipe(str(recipe(keys))), sketch(tiny_session_graph))
    assert error.value.exit_code == 2
    (problem,) = error.value.problems
    for words in expected:
        assert words in f"{problem.where}: {problem.message} ({problem.hint})", words
    assert problem.hint


def test_all_problems_of_the_model_at_once(vitslim: Callable[..., Any], recipe: Callable[[str], Path]) -> None:
    keys = "pruning_ratio: [0.5], axes: {blocks.0.mpl: 0.5}"
    expect(vitslim("plan", recipe(keys)), ["got 1 entry", "did you mean 'blocks.0.mlp'", "hint:"])


def test_run_stops_before_it_writes(vitslim: Callable[..., Any], recipe: Callable[[str], Path], tmp_path: Path) -> None:
    keys = "budget: {macs: 0.01}"
    expect(vitslim("run", recipe(keys), "--out", tmp_path / "out"), ["stages.0.prune.budget.macs", "hint:"])
    assert not (tmp_path / "out").exists()
