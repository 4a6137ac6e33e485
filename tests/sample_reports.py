"""Reports of runs: one with all optional values, and one with none."""

from __future__ import annotations

import pytest

from vitslim.results import (
    Accuracy,
    Assumption,
    Cost,
    Environment,
    Estimate,
    EstimateRow,
    GateResult,
    LayerNote,
    Measurement,
    OperatorProfile,
    OperatorTime,
    Report,
    StageRecord,
    TwoFourLayer,
    TwoFourUse,
)

ROWS = """
00-dense         timm      5717416  1254000000  1284096000000  22941773  0.7212  0.7660  -      12.41  381904
01-prune         depgraph  3015832  664310000   680253440000   12118020  0.6604  0.7004  0.812  7.02   233104
02-token-squeeze etps      3015832  431870000   442234880000   12150433  0.6491  0.6911  0.794  5.11   160288
03-distill       distill   3015832  431870000   442234880000   12150433  0.7149  0.7551  0.921  5.09   160288
04-quantize      ptq       3027112  431870000   34771120000    3402118   0.7131  0.7544  0.914  3.61   148112
05-export        onnx      3027112  431870000   34771120000    3402118   0.7131  0.7541  0.914  3.58   148112
"""
"""Stage, method, params, MACs, BOPs, ONNX bytes, top-1 on two sets, agreement, ms at batch 1, cycles."""

LOADS = {(1, 1): 1.0, (1, 2): 0.61, (8, 1): 7.7, (8, 2): 4.3}
"""Batch and threads to latency against batch 1 on one thread."""

CHANGED = {"prune": "kept 288 of 576", "quantize": "INT8 per channel", "token-squeeze": "kept 138 of 196 tokens"}
CLASSES = (
    ("qkv", "gemm", 12, 36),
    ("attention", "attention", 12, 17),
    ("fc1", "gemm", 12, 24),
    ("head", "gemm", 1, 23),
)


def _measurements(ms: float, dense: float) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(
            backend="onnxruntime:cpu",
            batch=batch,
            threads=threads,
            median_ms=ms * factor,
            spread_ms=0.021 * ms * factor,
            n=212 // batch,
            speedup=None if ms == dense else dense / ms * (1 - 0.01 * threads),
            peak_memory_mb=round(6.5 + 4 * ms * batch, 1) if threads == 1 else None,
            speedup_interval=None if ms == dense else (dense / ms * 0.97, dense / ms * 1.02),
        )
        for (batch, threads), factor in LOADS.items()
    )


def _estimate(cycles: int, dense: int, batch: int) -> Estimate:
    rows = tuple(
        EstimateRow(
            name=name,
            op=op,
            count=count,
            macs=3_000_000 * share,
            cycles=cycles * batch * share // 100,
            utilization=share / 100 + 0.3,
        )
        for name, op, count, share in CLASSES
    )
    return Estimate(
        backend="sim:systolic",
        batch=batch,
        cycles=cycles * batch,
        latency_ms=cycles * batch / 7e5,
        speedup=None if cycles == dense else dense / cycles,
        rows=rows,
        settings={"array": "128x128", "dataflow": "ws", "clock_ghz": "0.7"},
        calibration="closed form, exact against SCALE-Sim v3",
        expected_error="0 % on GEMM cycles; vector operators uncalibrated",
        assumed=("vector.passes", "vector.lanes"),
    )


OPERATORS = (
    ("/blocks/qkv/MatMul", "MatMulIntegerToFloat", 310.0),
    ("/blocks/fc1/MatMul", "MatMulIntegerToFloat", 290.0),
    ("/norm/LayerNormalization", "LayerNormalization", 45.5),
    ("BiasGelu", "BiasGelu", 31.0),
)
PROFILE = OperatorProfile(
    backend="onnxruntime:cpu",
    batch=1,
    threads=1,
    runs=20,
    operators=tuple(
        OperatorTime(name=name, op=op, provider="CPUExecutionProvider", median_us=us) for name, op, us in OPERATORS
    ),
)
TWO_FOUR = (
    TwoFourUse(backend="onnxruntime:cpu", note="ONNX Runtime does not tell whether a kernel uses 2:4 weights"),
    TwoFourUse(
        backend="torch:cuda",
        layers=(
            TwoFourLayer(layer="blocks.0.attn.qkv", status="selected"),
            TwoFourLayer(layer="blocks.0.mlp.fc1", status="selected"),
            TwoFourLayer(layer="head", status="not eligible", reason="a FP16 weight of 10x192 is no multiple of 32x64"),
        ),
    ),
    TwoFourUse(
        backend="tensorrt",
        layers=(
            TwoFourLayer(layer="blocks.0.attn.qkv", status="selected"),
            TwoFourLayer(layer="blocks.0.mlp.fc1", status="eligible, not selected"),
        ),
        note="from trtexec.log",
    ),
)


def _skipped() -> tuple[LayerNote, ...]:
    reason = "attention matmuls stay in FP32: ONNX Runtime has no INT8 kernel"
    head = LayerNote(layer="head.weight", result="skipped", reason="named in `skip`")
    return (head, *(LayerNote(layer=f"blocks.{i}.attn", result="skipped", reason=reason) for i in range(12)))


def _stage(row: str, dense: list[str]) -> StageRecord:
    name, method, params, macs, bops, size, val, samples, agreement, ms, cycles = row.split()
    kind = name.split("-", 1)[1]
    runtime = "onnxruntime" if kind == "export" else "torch"
    same = {} if agreement == "-" else {"agreement": float(agreement)}
    changes = (
        tuple(LayerNote(layer=f"blocks.{i}.mlp", result=CHANGED[kind]) for i in range(12)) if kind in CHANGED else ()
    )
    return StageRecord(
        name=name,
        kind=kind,
        method=method,
        seconds=0.4 if kind == "dense" else 37.25,
        cached=kind == "prune",
        key=f"{name}-" + "9f" * 32,
        cost=Cost(
            params=int(params),
            macs=int(macs),
            bops=int(bops),
            weight_bytes=int(size) - 71_000,
            device_bytes=int(size) - 72_000,
        ),
        onnx_bytes=int(size),
        accuracies=(
            Accuracy(dataset="val", n=3925, metrics={"top1": float(val), **same}, runtime=runtime),
            Accuracy(dataset="imagenet_samples", n=1000, metrics={"top1": float(samples), **same}, runtime=runtime),
        ),
        measurements=_measurements(float(ms), float(dense[9])),
        estimates=tuple(_estimate(int(cycles), int(dense[10]), batch) for batch in (1, 8)),
        profiles=(PROFILE,) if kind in {"dense", "export"} else (),
        two_four=TWO_FOUR if kind == "export" else (),
        changes=changes,
        skipped=_skipped() if kind == "quantize" else (),
        metrics={"sqnr_db": 31.42, "loss": 0.8812} if kind == "quantize" else {},
    )


@pytest.fixture
def full_report() -> Report:
    """Six stages, two sets, two batch sizes, two thread counts, one simulated target, everything filled in."""
    rows = ROWS.strip().splitlines()
    stages = tuple(_stage(row, rows[0].split()) for row in rows)
    versions = {"vitslim": "0.1.0", "torch": "2.13.0", "timm": "1.0.22", "onnx": "1.19.1", "onnxruntime": "1.23.2"}
    return Report(
        name="deit-tiny-demo",
        model="deit_tiny_patch16_224",
        dataset="imagefolder",
        seed=0,
        created="2025-11-02T10:24:31+00:00",
        environment=Environment(device="AMD EPYC 9R14", cores=2, versions=versions),
        stages=stages,
        final_accuracies=stages[-1].accuracies,
        parity={"parity_agreement": 0.9992, "parity_max_abs_error": 3.1e-5},
        gates=(
            GateResult(name="top1_drop_max", limit=1.0, value=0.81, passed=True),
            GateResult(name="size_ratio_min", limit=4.0, value=22_941_773 / 3_402_118, passed=True),
            GateResult(name="macs_ratio_min", limit=2.0, value=1254 / 431.87, passed=True),
            GateResult(name="speedup_min onnxruntime:cpu", limit=4.0, value=3.43, passed=False),
        ),
        assumptions=(
            Assumption(key="stages.2.token-squeeze.rounding", value="ceil"),
            Assumption(key="stages.3.distill.temperature", value="1.0"),
        ),
        warnings=(
            "02-token-squeeze precedes 04-quantize: calibration ranges are those of the reduced token set",
            "04-quantize leaves 12 attention matmuls in FP32, each between two conversions",
        ),
        files={"model.onnx": "1a2b3c4d" * 8, "weights.safetensors": "5e6f7a8b" * 8, "graph.json": "90ab12cd" * 8},
    )


@pytest.fixture
def bare_report() -> Report:
    """Two stages and nothing that a report may lack: no accuracy, no latency, no gates, no notes, no files."""
    cost = Cost(params=1000, macs=2000, bops=0, weight_bytes=4000, device_bytes=4000)
    stages = tuple(
        StageRecord(name=name, kind=kind, method="m", seconds=0.0, key="", cost=cost, onnx_bytes=0)
        for name, kind in (("00-dense", "dense"), ("01-export", "export"))
    )
    return Report(
        name="bare",
        model="vit",
        dataset="digits",
        seed=0,
        created="2025-01-01T00:00:00+00:00",
        environment=Environment(device="a CPU", cores=1, versions={}),
        stages=stages,
    )
