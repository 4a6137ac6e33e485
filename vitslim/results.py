"""Plain values that several rooms share: what was measured, what was estimated, and the report that holds both.

Measured and simulated results are different types on purpose: no table can put them into one column by accident.
Every model is frozen and serializes to JSON; `Report` is the documented schema of `report.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitslim.latency_grid import MatmulLatencies, Shape

REPORT_SCHEMA_VERSION = 1


class Value(BaseModel):
    """Base of all result values: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Environment(Value):
    """Where a number was obtained."""

    device: str
    """Processor or accelerator name, such as `AMD EPYC 9R14`."""
    cores: int
    versions: dict[str, str]
    """Library name to version: vitslim, torch, timm, onnx, onnxruntime."""


class Measurement(Value):
    """A latency that was measured: one ONNX file on one backend at one batch size and thread count."""

    backend: str
    """`NAME:TARGET`, such as `onnxruntime:cpu`."""
    batch: int
    threads: int
    median_ms: float
    spread_ms: float
    """Interquartile range of the timed runs."""
    n: int
    """Timed runs, warm-up excluded."""
    speedup: float | None = None
    """Median over the rounds of baseline time over this time, both taken in one round; None for the baseline."""
    speedup_spread: float | None = None
    """Interquartile range of the per-round speed-ups."""
    provenance: Literal["measured"] = "measured"


Bound = Literal["compute", "bandwidth", "launch", ""]
"""What a latency goes with: the rate of the arithmetic, of a memory, or the number of launches."""


class EstimateRow(Value):
    """One operator class or layer of a simulated estimate."""

    name: str
    op: str
    """Operator kind: `gemm`, `attention`, `conv`, `softmax`, `norm`, `elementwise`, `movement`, `unknown`."""
    count: int
    """How often the row occurs in the model; everything else is the total over all occurrences."""
    macs: int
    cycles: int | None = None
    """Compute cycles, for a target that counts them."""
    stall_cycles: int | None = None
    """Cycles that it waits for DRAM."""
    latency_us: float = 0.0
    utilization: float
    """MACs over what the target could do in that time, in [0, 1] for dense weights; stalls do not count as time."""
    bound: Bound = ""
    dram_bytes: int = 0
    energy_uj: float | None = None
    calibration: str = ""
    """Where the constants behind this row come from, or `uncalibrated`."""
    expected_error: str = ""


class Utilization(Value):
    """MACs of the whole model over what the target could do in its time, counted three ways, each in [0, 1]."""

    ideal: float
    """Nothing ever waits for data."""
    with_stalls: float
    with_loading: float
    """Also the first load and the last store of each product, which nothing hides."""


class Energy(Value):
    """Energy of one inference of a batch, from one named table."""

    table: str
    node: str
    """Process node, such as `45 nm`."""
    source: str
    parts_mj: dict[str, float]
    """Part such as `compute`, `sram` or `dram` to millijoules."""
    mac_pj: float | None = None
    dram_pj_per_bit: float | None = None
    assumed: tuple[str, ...] = ()
    """Keys of the table that no source confirms; with any, the whole energy is assumed."""

    @property
    def total_mj(self) -> float:
        """The sum of the parts."""
        return sum(self.parts_mj.values())


class Roofline(Value):
    """The two ceilings of a target, at the precision that most of the work is done in."""

    peak_tops: float
    """Operations per second, 2 for each MAC, in 10^12."""
    bandwidth_gbps: float
    """DRAM, 10^9 bytes per second."""
    precision: str


class Estimate(Value):
    """A latency that was simulated."""

    backend: str
    """`sim:NAME`."""
    batch: int
    cycles: int | None = None
    """Compute cycles, for a target that counts them."""
    stall_cycles: int | None = None
    latency_ms: float
    speedup: float | None = None
    rows: tuple[EstimateRow, ...] = ()
    terms_ms: dict[str, float] = {}
    """What the latency is the sum of, such as `launch`, `matrix products` and `memory`."""
    kernels: int | None = None
    """Launches, for a target that has them."""
    utilization: Utilization | None = None
    energy: Energy | None = None
    roofline: Roofline | None = None
    settings: dict[str, str] = {}
    calibration: str = ""
    """Where the constants come from, or `uncalibrated`."""
    expected_error: str = ""
    assumed: tuple[str, ...] = ()
    """Keys whose default value is an assumption."""
    provenance: Literal["simulated"] = "simulated"


class Accuracy(Value):
    """Top-1 of one model on one labeled set."""

    dataset: str
    """`val`, or the name given in `data.also_evaluate`."""
    top1: float
    """Fraction in [0, 1]."""
    n: int
    agreement: float | None = None
    """Fraction of images on which the arg-max equals the dense model's."""
    runtime: Literal["torch", "onnxruntime"] = "torch"
    provenance: Literal["measured"] = "measured"


class Cost(Value):
    """What a model needs, by the conventions of the specs: MACs include both attention products."""

    params: int
    macs: int
    """Per image."""
    bops: int
    weight_bytes: int
    """Bytes of all parameters at their deployed width, 2:4 layers as dense (what the ONNX file stores)."""
    device_bytes: int
    """Bytes on a device that compresses 2:4 weights (specs, section 3.2)."""


class LayerNote(Value):
    """One layer that a stage changed or left alone."""

    layer: str
    """Parameter or axis name."""
    what: str
    """Such as `INT8 per channel`, `2:4`, `kept 288 of 576`, or `skipped`."""
    reason: str = ""


class StageRecord(Value):
    """What one stage did: a row of the report."""

    name: str
    """Unique in the run, such as `01-prune`; `00-dense` is the model before any stage."""
    kind: str
    method: str
    seconds: float
    cached: bool = False
    key: str
    cost: Cost
    onnx_bytes: int
    accuracies: tuple[Accuracy, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    changes: tuple[LayerNote, ...] = ()
    skipped: tuple[LayerNote, ...] = ()
    metrics: dict[str, float] = {}
    """Stage-specific figures, such as `kept_magnitude` or `sqnr_db`."""


class PlanRow(Value):
    """One stage of a plan with the cost of the model after it; no cost when the model was not traced."""

    kind: str
    method: str
    cost: Cost | None = None
    approximate: bool = False
    """Whether weights and data have a say in the cost, so that the run will come out near it and not at it."""


class Plan(Value):
    """What a recipe will do, before it runs. The first row is the dense model."""

    name: str
    model: str
    rows: tuple[PlanRow, ...]
    warnings: tuple[str, ...] = ()


class GateResult(Value):
    """One budget of the recipe and whether it holds."""

    name: str
    limit: float
    value: float
    passed: bool


class LatencyTable(Value):
    """How long the matrix products of a model take on one backend, for shapes that the model may come to have."""

    schema_version: Literal[1] = 1
    model: str
    kwargs: dict[str, int | float | str | bool] = {}
    """Arguments that the timm model was built with."""
    backend: str
    kind: Literal["measured", "simulated"]
    settings: dict[str, str] = {}
    batch: int
    threads: int | None
    """None for a simulated backend."""
    environment: Environment
    n: int
    """Timed runs of each entry, at least; 0 for a simulated backend."""
    spread: float
    """Interquartile range over median, the median of all entries."""
    dense_ms: float
    """The whole model as it came."""
    rest_ms: float
    """What the products of the dense model leave of it; taken to stay the same."""
    scale: float = 1.0
    """Factor on all entries; below 1 only where the products add up to more than the whole dense model."""
    products: MatmulLatencies

    def estimate_ms(self, shapes: Iterable[Shape]) -> float:
        """Milliseconds of a model with products of these shapes: the fixed rest and the sum over products."""
        return self.rest_ms + self.scale * sum(self.products.at(shape) for shape in shapes)


class Assumption(Value):
    """A recipe key whose value no source confirms."""

    key: str
    value: str


class Report(Value):
    """Everything that a run found out. Every renderer reads only this."""

    schema_version: int = REPORT_SCHEMA_VERSION
    name: str
    model: str
    dataset: str
    seed: int
    created: str
    """ISO 8601, UTC."""
    environment: Environment
    stages: tuple[StageRecord, ...]
    """In order; the first is the dense baseline, the last the exported model."""
    final_accuracies: tuple[Accuracy, ...] = ()
    """Through ONNX Runtime on the exported file."""
    parity: dict[str, float] = {}
    """Exported file against the graph it came from, such as `agreement` and `max_abs_error`."""
    gates: tuple[GateResult, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = {}
    """File name to sha256."""
