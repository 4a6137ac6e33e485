"""The jobs for continuous integration in recipes/README.md, run as shell scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from vitslim.recipe.document.yaml12 import parse_yaml

ROOT = Path(__file__).parents[2]
RECIPE = """
name: small
model:
  timm: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2, num_classes: 10}
data: {kind: digits, calibration: 16, eval_images: 20}
stages:
  - quantize: {method: ptq, bits: 8}
  - export
report: {backends: [sim:systolic], batches: [1]}
gates: {size_ratio_min: SIZE_RATIO}
"""


def jobs(key: str) -> Any:
    """Return the job of the page whose top-level mapping has the key."""
    page = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    documents = [parse_yaml(text) for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)]
    (found,) = [document[key] for document in documents if key in document]
    return found


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a runner on which `pip` has nothing to do and `vitslim` is this checkout."""
    programs = {"pip": "exit 0", "vitslim": f'exec "{sys.executable}" -m vitslim.cli.app "$@"'}
    (tmp_path / "bin").mkdir()
    for name, command in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    work = tmp_path / "work"
    work.mkdir()
    return work


def execute(command: str, folder: Path) -> int:
    return subprocess.run(["bash", "-eo", "pipefail", "-c", command], cwd=folder, check=False).returncode


def github(folder: Path) -> int:
    """Run the steps of the GitHub job; a step after a failed one runs only with `if: always()`."""
    code = 0
    for step in jobs("jobs")["compress"]["steps"]:
        if "run" in step and (not code or step.get("if") == "always()"):
            code = execute(step["run"], folder) or code
    return code


@pytest.mark.slow
def test_the_github_job_is_red_until_the_gate_is_met(runner: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (runner / "recipe.yaml").write_text(RECIPE.replace("SIZE_RATIO", "50"))
    assert github(runner) == 1
    assert "size_ratio_min" in capfd.readouterr().err
    assert ET.parse(runner / "junit.xml").find(".//failure") is not None
    assert "size_ratio_min" in (runner.parent / "summary.md").read_text()
    (runner / "out" / "report.json").rename(runner / "baseline.json")

    (runner / "recipe.yaml").write_text(RECIPE.replace("SIZE_RATIO", "2"))
    assert github(runner) == 0
    assert ET.parse(runner / "junit.xml").find(".//failure") is None


def test_the_gitlab_job_runs_the_commands_of_the_github_job() -> None:
    job = jobs("compress")
    steps = [step for step in jobs("jobs")["compress"]["steps"] if "run" in step]
    assert job["script"] == [step["run"] for step in steps if "if" not in step]
    (report,) = [step["run"].splitlines() for step in steps if "if" in step]
    assert job["after_script"] == report[:2]
    written = {line.partition(" > ")[2] for line in job["after_script"]}
    assert written == {job["artifacts"]["reports"]["junit"], job["artifacts"]["paths"][1]}


def test_the_github_job_uploads_what_it_writes() -> None:
    (upload,) = [step for step in jobs("jobs")["compress"]["steps"] if "path" in step.get("with", {})]
    assert upload["with"]["path"].split() == ["out/", "junit.xml", "report.md"]
    assert upload["if"] == "always()"
