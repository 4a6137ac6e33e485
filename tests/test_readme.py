"""Every code block of README.md and recipes/README.md works, and their tables are those of the script."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from vitslim.cli import app
from vitslim.data import load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe import packaged_recipes, validate
from vitslim.recipe.document.yaml12 import parse_yaml
from vitslim.recipe.schema import Data
from vitslim.stages.export.onnx_export import export_onnx

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "recipes/README.md", "vitslim/README.md", "scripts/results/README.md", "vitslim/ONNX.md")
BYTES_MAX = 9_000
BASE: dict[str, Any] = {
    "name": "fragment",
    "model": {"timm": "deit_tiny_patch16_224"},
    "data": {"kind": "imagefolder"},
    "stages": ["export"],
}
ELSEWHERE = {
    "bash scripts/vitslim run quickstart": "scripts/benchmarks/quickstart.py",
    "bash scripts/test": "scripts/test",
    "vitslim run quickstart --events events.jsonl": "tests/cli/test_run_progress.py",
    "vitslim run quickstart --tensorboard logs": "tests/cli/test_run_progress.py",
    "vitslim bench --table deit_tiny_patch16_224 --backend onnxruntime:cpu --threads 2 --out deit_tiny.table.json":
        "tests/pipeline/test_latency_table.py",
}  # fmt: skip
"""Command to the script or test that executes it."""
LIGHTER = {
    "vitslim plan deit-tiny-demo": "plan deit-tiny-demo --no-trace",
    "vitslim run deit-tiny-demo --checkpoint deit_tiny.safetensors --data DIR":
        "recipes validate deit-tiny-demo --set model.checkpoint=deit_tiny.safetensors --set data.root=DIR",
    "vitslim run my-model.yaml --set data.root=DIR --out out/my-model":
        "recipes validate my-model.yaml --set data.root=DIR",
}  # fmt: skip
"""Command that takes seconds or trains for minutes to a fast command that reads the same recipe and values."""

JOBS = {"jobs", "compress"}
"""Keys of the jobs for continuous integration."""


def blocks(language: str) -> list[str]:
    """The code blocks of both pages in one language."""
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES[:2]]
    return [text for page in pages for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
            if name == language]  # fmt: skip


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


def execute(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line in this process and return its output; `> FILE` writes it."""
    line, _, target = command.partition(" > ")
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    app.main()
    out = capsys.readouterr().out
    if target:
        Path(target).write_text(out, encoding="utf-8")
    return out


def test_code_blocks_are_of_known_languages() -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES[:2]]
    fences = [fence for page in pages for fence in re.findall(r"^```(\w*)$", page, re.M)]
    assert set(fences[::2]) <= {"bash", "yaml", "python", "text", "toml"}
    assert set(fences[1::2]) == {""}


def test_each_command_runs_or_is_covered_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for command in commands():
        if command in ELSEWHERE:
            assert (ROOT / ELSEWHERE[command]).is_file()
            continue
        fast = f"vitslim {LIGHTER[command]}" if command in LIGHTER else command
        assert re.match(r"vitslim (plan|recipes) ", fast), f"no test executes: {command}"
        assert execute(fast, monkeypatch, capsys)


def test_no_command_is_listed_that_the_pages_lack() -> None:
    assert {*ELSEWHERE, *LIGHTER} <= set(commands())


def test_yaml_blocks_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gemms.csv").write_text("M,N,K,dtype,sparse,count\n197,576,192,INT8,0,1\n", encoding="utf-8")
    targets = 0
    for text in blocks("yaml"):
        document = parse_yaml(text)
        if document.keys() & JOBS:
            continue  # tests/cli/test_ci_jobs.py
        if document.keys() & {"stages", "report", "gates"}:
            validate(BASE | document, partial=True)
        else:
            targets += 1
            Path("my-array.yaml").write_text(text, encoding="utf-8")
            assert execute("vitslim bench --gemms gemms.csv --backend sim:my-array.yaml", monkeypatch, capsys)
    assert targets == 1


def test_stage_entries_in_tables_are_valid() -> None:
    page = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    entries = [parse_yaml(f"- {entry}")[0] for entry in re.findall(r"\| `(quantize[^`]*)` \|$", page, re.M)]
    assert len(entries) == 9
    for entry in entries:
        validate({**BASE, "stages": [entry, {"export": {"profile": "ort-cpu"}}]}, partial=True)


def test_the_python_block_predicts_as_the_evaluation_does(
    tiny_graph: ModelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number, size in enumerate([(47, 60), (80, 33), (64, 64), (32, 32)]):
        pixels = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        for split in ("train", "val"):
            folder = tmp_path / "images" / split / f"class{number}"
            folder.mkdir(parents=True)
            Image.fromarray(pixels).resize(size).save(folder / "image.png")
    export_onnx(tiny_graph, tmp_path / "model.onnx")
    (block,) = blocks("python")
    names = tuple(f"class{number}" for number in range(10))
    config = Data(kind="imagefolder", root=str(tmp_path / "images"), calibration=1, classes=names)
    data = load_data(config, tiny_graph.source, 0)
    session = onnxruntime.InferenceSession("model.onnx")
    for number, (images, _) in enumerate(data.val.batches(1)):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        Image.open(tmp_path / "images" / "val" / f"class{number}" / "image.png").save("image.png")
        found: dict[str, Any] = {}
        exec(block, found)
        assert int(capsys.readouterr().out) == logits.argmax()
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_front_page_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= BYTES_MAX


@pytest.mark.parametrize("page", PAGES[:2])
def test_every_packaged_recipe_is_listed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(f"`{info.name}`" in text for info in packaged_recipes())


def test_tables_are_those_that_the_script_writes() -> None:
    program = (
        "import update_readme as u; text = u.README.read_text(encoding='utf-8');"
        "assert u.with_block(text, 'results', u.headline_table()) == text, 'README.md';"
        "assert u.page() == u.PAGE.read_text(encoding='utf-8'), 'scripts/results/README.md'"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"run scripts/update_readme.py\n{run.stderr}"
