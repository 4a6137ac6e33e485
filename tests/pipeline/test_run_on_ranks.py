"""`vitslim run` under torchrun: silent ranks, a lost rank, and resuming with another number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vitslim.data import load_data
from vitslim.errors import InputError, RecipeError
from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline.run.runner import require_images
from vitslim.pipeline.run.verb import check_ranks
from vitslim.recipe import validate
from vitslim.recipe.schema import Data

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def recipe_of(tiny_kwargs: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {
        "name": "two-ranks",
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 64, "eval_images": 100},
        "stages": [
            {"distill": {"teacher": "none", "loss": {"hard": 1},
                         "train": {"epochs": 2, "batch": 32, "lr": 1e-3, **train}}},
            {"quantize": {"method": "ptq"}},
            "export",
        ],
        "report": {"backends": ["sim:systolic"], "batches": [1]},
    }  # fmt: skip


def test_batches_that_ranks_cannot_share_evenly_are_refused(
    tiny_kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError) as caught:
        check_ranks(validate(recipe_of(tiny_kwargs), "two-ranks"))
    (problem,) = caught.value.problems
    assert problem.where == "stages.0.distill.train.batch"
    assert "3 ranks cannot share batches of 32 images evenly" in problem.message
    assert "such as 33" in problem.hint
    check_ranks(validate(recipe_of(tiny_kwargs, batch=33), "two-ranks"))
    with pytest.raises(RecipeError, match="1 problem"):
        check_ranks(validate(recipe_of(tiny_kwargs, batch=66, mixup=0.8, accumulate=2), "two-ranks"))


def test_fewer_images_than_ranks_are_refused(tiny_session_graph: ModelGraph) -> None:
    data = load_data(Data(kind="digits", calibration=3), tiny_session_graph.source, 0)
    require_images(data, 3)
    with pytest.raises(InputError, match="4 ranks cannot share the 3 images of 'calibration'"):
        require_images(data, 4)


@pytest.mark.slow
def test_a_lost_rank_ends_the_run_and_any_number_of_ranks_resumes_it(
    tiny_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """Two ranks begin the training, one process continues it, and two ranks end it; the first two are killed."""
    path, out = tmp_path / "recipe.json", tmp_path / "out"
    path.write_text(json.dumps(recipe_of(tiny_kwargs, epochs=6)), encoding="utf-8")
    arguments = ["-m", "vitslim.cli.app", "run", str(path), "--out", str(out)]
    two_ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]

    killed = started(two_ranks)
    written = wait_for_state(killed, out, after=0)
    os.kill(last_child(killed.pid), signal.SIGKILL)
    output, errors = killed.communicate(timeout=120)
    assert killed.returncode == 1  # of torchrun
    assert output == ""
    assert errors.count("another rank stopped") + errors.count("the run was asked to end") == 1
    assert not list(stages_of(out).glob("*.partial"))

    alone = started(arguments)
    wait_for_state(alone, out, after=written)
    alone.kill()
    assert "training continues after step" in alone.communicate()[1]

    resumed = started([*two_ranks, "--format", "json"])
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert errors.count("training continues after step") == 1  # one rank prints
    report = json.loads(output)
    trained = report["stages"][1]["metrics"]
    assert (trained["steps"], trained["loss_last"] < trained["loss_first"]) == (6 * 45, True)
    assert (out / "manifest.json").is_file()


def started(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stages_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.stages")


def wait_for_state(process: subprocess.Popen[str], out: Path, after: int) -> int:
    """Wait until the training state is written after a time in nanoseconds, and return the time of the file."""
    while process.poll() is None:
        for state in stages_of(out).glob(".01-distill-*.kept/training.safetensors"):
            if state.stat().st_mtime_ns > after:
                return state.stat().st_mtime_ns
        time.sleep(0.1)
    raise AssertionError(process.communicate()[1])


def last_child(launcher: int) -> int:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=True)
    return max(int(line) for line in found.stdout.split())
