"""Limits on the results of a run, and the measurements that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from vitslim.errors import Problem
from vitslim.recipe.config import Config

Limit = Annotated[float, Field(gt=0)]
MEMORY_GATE = "peak_memory_mb_max"
BACKEND_GATES = ("speedup_min", "latency_ms_max", "throughput_min", "energy_mj_max", MEMORY_GATE)
"""Gates that map backends to limits."""
_SETTING = re.compile(r"(?P<backend>.*?)(, batch (?P<batch>[1-9]\d*))?(, (?P<threads>[1-9]\d*) threads?)?", re.DOTALL)


class GatedSetting(NamedTuple):
    """The measurement that a gate names: `onnxruntime:cpu, batch 8, 2 threads`."""

    backend: str
    batch: int | None
    """None: the first of the report."""
    threads: int | None
    """None: the first of the report."""


def parse_setting(text: str) -> GatedSetting:
    """Return the backend, batch size and thread count of a key."""
    found = _SETTING.fullmatch(text)
    assert found is not None  # the first group takes any text
    batch, threads = found["batch"], found["threads"]
    return GatedSetting(found["backend"], int(batch) if batch else None, int(threads) if threads else None)


class Gates(Config):
    """Limits on the results: the run exits with code 1 if one is violated, or if its value was not measured.

    A gate of backends maps a backend to its limit. `onnxruntime:cpu` is the first batch size and thread count of the
    report; `onnxruntime:cpu, batch 8, 2 threads` is another one.
    """

    judge: Literal["estimate", "strict", "lenient"] = Field(
        "estimate",
        description="strict: the worse end of the 95 % interval must pass; lenient: the better end. Metrics without an "
        "interval are judged by their estimate",
    )
    top1_drop_max: float | None = Field(None, description="largest loss of top-1 on val, in points (task classify)")
    top1_min: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="smallest top-1 on val, in percent (task classify)"
    )
    agreement_min: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="smallest top-1 agreement with the dense model on val, in percent (task classify)"
    )
    map_min: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="smallest mean average precision on val, in percent (task multilabel)"
    )
    cosine_min: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None,
        description="smallest mean cosine similarity to the outputs of the dense model on val, from -1 to 1 (task "
        "features)",
    )
    neighbor_agreement_min: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None,
        description="smallest share of images of val, in percent, whose nearest calibration image is the same as by "
        "the dense model (task features, with embeddings)",
    )
    size_ratio_min: Annotated[float, Field(gt=0)] | None = Field(
        None, description="smallest size ratio: dense ONNX bytes over compressed ONNX bytes"
    )
    macs_ratio_min: Annotated[float, Field(gt=0)] | None = Field(None, description="dense MACs over compressed MACs")
    bops_ratio_min: Limit | None = Field(None, description="dense BOPs over compressed BOPs")
    size_mb_max: Limit | None = Field(None, description="largest ONNX file, in 10^6 bytes")
    gmacs_max: Limit | None = Field(None, description="most MACs for an image, in 10^9")
    speedup_min: dict[str, Limit] = Field({}, description="smallest speedup over the dense model, by backend")
    latency_ms_max: dict[str, Limit] = Field({}, description="largest latency of a batch in milliseconds, by backend")
    throughput_min: dict[str, Limit] = Field({}, description="fewest images per second, by backend")
    energy_mj_max: dict[str, Limit] = Field(
        {}, description="largest simulated energy of a batch in millijoules, by simulated backend"
    )
    peak_memory_mb_max: dict[str, Limit] = Field(
        {}, description="largest peak memory of a batch in 10^6 bytes, by backend on the CPU; needs `report.memory`"
    )

    @property
    def of_backends(self) -> dict[str, dict[str, float]]:
        """The gates that limit backends, by name."""
        return {name: getattr(self, name) for name in BACKEND_GATES}


def setting_problems(gates: Gates, batches: Sequence[int], threads: Sequence[int], memory: bool) -> Iterator[Problem]:
    """Yield a problem for each gate of a batch size, a thread count or a memory that the report does not measure."""
    if gates.peak_memory_mb_max and not memory:
        yield Problem(f"gates.{MEMORY_GATE}", "the report measures no memory", "set `report.memory: true`")
    for gate, limits in gates.of_backends.items():
        for key in limits:
            setting = parse_setting(key)
            for name, value, allowed in (("batch", setting.batch, batches), ("threads", setting.threads, threads)):
                if value is not None and value not in allowed:
                    plural = "batches" if name == "batch" else "threads"
                    message = f"the gate needs {name} {value}, which is not among report.{plural}"
                    yield Problem(
                        f"gates.{gate}.{key}", message, f"add it to report.{plural}, or name one of {list(allowed)}"
                    )
