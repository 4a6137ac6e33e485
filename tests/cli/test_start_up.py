"""Help, plans without a trace, and refusals by the text of a recipe alone start quickly and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CPU_SECONDS_MAX = 0.35
SLOWER_THAN_LIBRARIES = 3.5
"""Limit on a slow or busy machine, relative to importing the libraries of the command line."""
HEAVY = ("torch", "timm", "onnxruntime", "sklearn")

BOMB = "name: bomb\nmodel: &a [x, x]\ndata: [*a, *a]\n"
UNKNOWN_KEY = """
name: typo
model: {timm: deit_tiny_patch16_224}
data: {kind: digits}
stages:
  - prune: {method: depgraph, ratio: 0.5}
  - export
"""
WRONG_ORDER = """
name: order
model: {timm: deit_tiny_patch16_224}
data: {kind: digits}
stages:
  - quantize
  - prune: {method: depgraph}
  - export
"""
CONTRADICTION = """
name: contradiction
model: {timm: deit_tiny_patch16_224}
data: {kind: digits}
stages:
  - distill: {teacher: none, loss: {hard: 0}}
  - export
"""

SETTING = """
name: setting
model: {timm: deit_tiny_patch16_224}
data: {kind: digits}
stages: [export]
report: {backends: [{sim: systolic, aray: [1, 1]}]}
"""

PROGRAM = """
import atexit, sys
atexit.register(lambda: print("modules", *(set({heavy}) & set(sys.modules)), file=sys.stderr))
sys.argv[1:] = {arguments}
from vitslim.cli.app import main
main()
"""


def run(program: str) -> tuple[int, str, float]:
    """Exit code, stderr, and the CPU seconds of the faster of two runs; the first may have to compile bytecode."""
    seconds = []
    for _ in range(2):
        before = sum(os.times()[2:4])
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        seconds.append(sum(os.times()[2:4]) - before)
    return done.returncode, done.stderr, min(seconds)


@pytest.fixture(scope="module")
def seconds_max() -> float:
    _, _, libraries = run("import pydantic.types, rich.console, ruamel.yaml, typer")
    return max(CPU_SECONDS_MAX, SLOWER_THAN_LIBRARIES * libraries)


@pytest.mark.parametrize(
    ("arguments", "recipe", "code", "words"),
    [
        (["--help"], "", 0, ""),
        (["run", "--help"], "", 0, ""),
        (["recipes", "list"], "", 0, ""),
        (["plan", "quickstart", "--no-trace"], "", 0, ""),
        (["run", "no-such-recipe"], "", 2, "there is no recipe 'no-such-recipe'"),
        (["run", "FILE"], UNKNOWN_KEY, 2, "unknown key"),
        (["run", "FILE"], BOMB, 2, "aliases are not allowed"),
        (["run", "FILE"], WRONG_ORDER, 2, "must come before quantize"),
        (["run", "FILE"], CONTRADICTION, 2, "weight zero"),
        (["plan", "FILE"], WRONG_ORDER, 2, "must come before quantize"),
    ],
)
def test_no_torch_and_little_time(
    tmp_path: Path, seconds_max: float, arguments: list[str], recipe: str, code: int, words: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe, encoding="utf-8")
    arguments = [str(file) if argument == "FILE" else argument for argument in arguments]
    found, stderr, seconds = run(PROGRAM.format(heavy=HEAVY, arguments=arguments))
    assert found == code
    assert words in stderr
    assert stderr.splitlines()[-1] == "modules"
    assert seconds < seconds_max


def test_settings_of_a_simulated_target_are_refused_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(SETTING, encoding="utf-8")
    code, stderr, _ = run(PROGRAM.format(heavy=HEAVY, arguments=["run", str(file)]))
    assert code == 2
    assert "aray: unknown key" in stderr
    assert stderr.splitlines()[-1] == "modules"
