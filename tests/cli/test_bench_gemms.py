"""`vitslim bench --gemms`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIST = "M,N,K,dtype,sparse,count,measured_us\n197,768,192,FP16,0,1,\n4096,4096,4096,FP16,1,1,326\n64,64,64,INT8,0,3,\n"


@pytest.fixture
def gemm_list(tmp_path: Path) -> Path:
    path = tmp_path / "gemms.csv"
    path.write_text(LIST)
    return path


def test_a_list_is_predicted_with_errors(vitslim: Callable[..., Any], gemm_list: Path, tmp_path: Path) -> None:
    outcome = vitslim("bench", "--gemms", gemm_list, "--backend", "sim:a100", "--out", tmp_path / "out.csv")
    assert outcome.code == 0
    for words in ("4096 x 4096 x 4096", "roofline", "pooled", "fitted"):
        assert words in outcome.out
    written = (tmp_path / "out.csv").read_text().splitlines()
    assert written[0].endswith("measured_us,predicted_us")
    assert len(written) == 4
    rows = json.loads(vitslim("bench", "--gemms", gemm_list, "--backend", "sim:h100", "--format", "json").out)["rows"]
    assert {row["calibration"] for row in rows} == {"uncalibrated"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "needs one --backend"),
        (("--backend", "sim:a100", "--backend", "sim:h100"), 2, "needs one --backend"),
        (("--backend", "sim:a100", "--batch", "2"), 2, "allows only --backend"),
        (("--backend", "onnxruntime:cpu"), 2, "does not time FP16"),
        (("--backend", "torch:cuda"), 4, "CUDA"),
        (("--backend", "sim:b100"), 2, "did you mean"),
    ],
)
def test_wrong_arguments(
    vitslim: Callable[..., Any], gemm_list: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    outcome = vitslim("bench", "--gemms", gemm_list, *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_list(vitslim: Callable[..., Any], tmp_path: Path) -> None:
    outcome = vitslim("bench", "--gemms", tmp_path / "none.csv", "--backend", "sim:a100")
    assert outcome.code == 5
    assert "cannot be read" in outcome.err
