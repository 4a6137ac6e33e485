"""Several ranks compute what one process computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rank_checks
import torch
from rank_checks import STAGES, STEPS, Checks

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.image_draws import draw_for_images
from vitslim.ranks import rows_of_rank

SCRIPT = Path(rank_checks.__file__)
FEW = ["distill", "qat"]
"""Stages of the shorter test."""


def on_two_ranks(folder: Path, names: list[str]) -> list[Checks]:
    """Return the checks of both ranks of a run under torchrun, on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run([*command, str(folder), *names], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def limit(name: str) -> float:
    """Largest difference of gradients, relative to the largest one.

    Empirical noise comes from a histogram of rounding errors, in which a difference in the last digit moves a whole
    value to another bin.
    """
    return 1e-4 if name == "nipq-empirical" else 1e-5


def require_equal_checks(graph: ModelGraph, folder: Path, names: list[str]) -> None:
    ranks = on_two_ranks(folder, names)
    expected = rank_checks.checks(graph, folder, names)
    for name in names:
        for gradient, *found in zip(expected[name], *(one[name] for one in ranks), strict=True):
            for other in found:
                assert float((other - gradient).abs().max()) <= limit(name) * float(gradient.abs().max()), name
        assert torch.equal(ranks[0][name][-1], ranks[1][name][-1])  # the weights after the stage
    for one in ranks:
        assert all(map(torch.equal, one["evaluation"], expected["evaluation"]))
        for found_sums, sums in zip(one["calibration"], expected["calibration"], strict=True):
            assert float((found_sums - sums).abs().max()) <= 1e-6 * float(sums.abs().max())
    seen = [one["seen"][0].tolist() for one in ranks]
    assert [len(positions) for positions in seen] == [60, 63]  # 8 and 8 of 16 images, 4 and 5 of the last 9
    (whole,) = expected["seen"]
    for epoch in range(3):
        parts = seen[0][20 * epoch : 20 * (epoch + 1)] + seen[1][21 * epoch : 21 * (epoch + 1)]
        assert sorted(parts) == list(range(41))
        assert sorted(whole[41 * epoch : 41 * (epoch + 1)].tolist()) == sorted(parts)


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one_process_and_share_its_images(tmp_path: Path) -> None:
    """Also the same statistics of calibration, from which the scales of `qat` come, and the same predictions."""
    require_equal_checks(rank_checks.dense_graph(), tmp_path, FEW)


@pytest.mark.slow
def test_every_method_trains_on_two_ranks_as_in_one_process(tmp_path: Path) -> None:
    graph = rank_checks.dense_graph()
    require_equal_checks(graph, tmp_path, list(STAGES))
    with rank_checks.recorded_gradients() as gradients:
        rank_checks.run_stage("distill", graph, tmp_path)
    assert len(gradients) == STEPS


@pytest.mark.parametrize("images", [8, 12, 13, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_divide_a_batch(images: int, ranks: int) -> None:
    parts = [rows_of_rank(images, rank, ranks) for rank in range(ranks)]
    if images < ranks:
        assert parts == [list(range(images))] * ranks
        return
    assert sorted(row for part in parts for row in part) == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if images % (2 * ranks) == 0:
        for part in parts:
            assert [images - 1 - row for row in part[::-1]] == part  # pairs of mixup stay together


def test_draws_of_one_process_are_those_of_the_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(5, 2)
    torch.manual_seed(0)
    assert torch.equal(draw_for_images(lambda images: torch.rand(images, 2), 5), expected)
