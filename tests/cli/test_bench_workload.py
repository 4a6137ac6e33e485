"""`vitslim bench --workload`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEADER = (
    "iteration_id,layer_id,head_id,embedding_length_D,sentence_length_L,key_fetch_num,value_fetch_num,quant_key_bit,"
    "quant_query_bit,quant_value_bit,if_requant,auto_requant_incre,if_topk,topk"
)


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "workload.csv"
    path.write_text(f"{HEADER}\n0,0,0,64.0,100,50,10,6,16,6,True,4,False,-1\nconfig.yaml\n")
    return path


def test_a_workload_is_simulated_on_both_targets(vitslim: Callable[..., Any], workload: Path) -> None:
    outcome = vitslim("bench", "--workload", workload, "--backend", "sim:spatten")
    assert outcome.code == 0
    for words in ("attention of layer 0", "K and V rows", "spatten40"):
        assert words in outcome.out
    both = ("--backend", "sim:spatten", "--backend", "sim:spatten-1/8", "--format", "json")
    estimates = json.loads(vitslim("bench", "--workload", workload, *both).out)["estimates"]
    assert [one["backend"] for one in estimates] == ["sim:spatten", "sim:spatten-1/8"]
    assert estimates[1]["speedup"] < 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "--workload needs a --backend"),
        (("--backend", "sim:a100"), 2, "'sim:a100' reads no sequence workloads"),
        (("--backend", "onnxruntime:cpu"), 2, "reads no sequence workloads"),
        (("--backend", "sim:spatten", "--batch", "2"), 2, "--workload allows only --backend and --format"),
    ],
)
def test_wrong_options_are_refused(
    vitslim: Callable[..., Any], workload: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    outcome = vitslim("bench", "--workload", workload, *arguments)
    assert outcome.code == code
    assert message in outcome.err


def test_a_missing_file_is_refused(vitslim: Callable[..., Any], tmp_path: Path) -> None:
    outcome = vitslim("bench", "--workload", tmp_path / "none.csv", "--backend", "sim:spatten")
    assert outcome.code == 5
    assert "cannot be read" in outcome.err
