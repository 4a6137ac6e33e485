"""Results as plain values: measurements, estimates, costs, and the report that contains them.

Measured and simulated results are different types, so that no table can mix them in one column. Every model is frozen
and serializes to JSON; `Report` is the documented schema of `report.json`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from vitslim.results.accelerator_result import AcceleratorResult
from vitslim.results.gate_result import GateResult
from vitslim.results.operator_profile import OperatorProfile
from vitslim.results.pruned_widths import PrunedWidths
from vitslim.results.tensor_bits import TensorBits
from vitslim.results.token_picture import TokenPicture
from vitslim.results.two_four import TwoFourUse
from vitslim.results.value import Value
from vitslim.tasks import Task

REPORT_SCHEMA_VERSION = 3


class Environment(Value):
    """Device and software versions of a measurement."""

    device: str
    """Processor or accelerator name, such as `AMD EPYC 9R14`."""
    cores: int
    versions: dict[str, str]
    """Library name to version: vitslim, torch, timm, onnx, onnxruntime."""


class Measurement(Value):
    """Measured latency of one ONNX file on one backend at one batch size and thread count."""

    backend: str
    """`NAME:TARGET`, such as `onnxruntime:cpu`."""
    batch: int
    threads: int
    median_ms: float
    spread_ms: float
    """Interquartile range of the timed runs."""
    n: int
    """Number of timed runs, without warm-up."""
    speedup: float | None = None
    """Baseline latency over this latency, timed in turn; None for the baseline. Geometric mean over the blocks of a
    measurement of the median over the rounds of a block."""
    speedup_interval: tuple[float, float] | None = None
    """95 % confidence interval of the speedup; None for the baseline."""
    peak_memory_mb: float | None = None
    """Rise of the resident memory of a fresh process while it opens the file and runs the batch, in 10^6 bytes; None
    where it was not measured."""
    provenance: Literal["measured"] = "measured"


Bound = Literal["compute", "bandwidth", "launch", ""]
"""The resource that limits a latency: arithmetic, memory bandwidth, or kernel launches; empty when unknown."""


class EstimateRow(Value):
    """One kind of operator or one layer of a simulated estimate."""

    name: str
    op: str
    """Operator kind: `gemm`, `attention`, `conv`, `softmax`, `norm`, `elementwise`, `movement`, `unknown`."""
    count: int
    """Number of occurrences in the model; all other values are totals over the occurrences."""
    macs: int
    cycles: int | None = None
    """Compute cycles; None for a target that does not count cycles."""
    stall_cycles: int | None = None
    """Cycles spent waiting for DRAM."""
    latency_us: float = 0.0
    utilization: float
    """MACs over the peak MACs of the target in the same time without stalls; in [0, 1] for dense weights."""
    bound: Bound = ""
    dram_bytes: int = 0
    energy_uj: float | None = None
    calibration: str = ""
    """Source of the constants of this row, or `uncalibrated`."""
    expected_error: str = ""
    """Expected relative error of the latency; empty when unknown."""


class Utilization(Value):
    """MACs of the whole model over the peak MACs of the target in the same time, in [0, 1]."""

    ideal: float
    """Without waiting for data."""
    with_stalls: float
    """With stalls for DRAM."""
    with_loading: float
    """Also with the first load and the last store of each GEMM, which do not overlap with computation."""


class Energy(Value):
    """Energy of one inference of a batch, from one table of energies per operation."""

    table: str
    node: str
    """Process node, such as `45 nm`."""
    source: str
    parts_mj: dict[str, float]
    """Part, such as `compute`, `sram` or `dram`, to millijoules."""
    mac_pj: float | None = None
    dram_pj_per_bit: float | None = None
    assumed: tuple[str, ...] = ()
    """Keys of the table without a source; if there are any, the energy counts as assumed."""

    @property
    def total_mj(self) -> float:
        """Sum of the parts."""
        return sum(self.parts_mj.values())


class Roofline(Value):
    """Peak arithmetic and memory throughput of a target, at the precision of most MACs of the model."""

    peak_tops: float
    """10^12 operations per second, two per MAC."""
    bandwidth_gbps: float
    """DRAM bandwidth in 10^9 bytes per second."""
    precision: str


class Sensitivity(Value):
    """Latency and energy of a simulated target at both ends of the plausible range of an assumed value."""

    key: str
    value: str
    """The value that the estimate uses."""
    low: float
    high: float
    latency_low_ms: float
    latency_high_ms: float
    energy_low_mj: float
    energy_high_mj: float


class Estimate(Value):
    """Simulated latency of one ONNX file on one target at one batch size."""

    backend: str
    """`sim:NAME`."""
    batch: int
    cycles: int | None = None
    """Compute cycles; None for a target that does not count cycles."""
    stall_cycles: int | None = None
    """Cycles spent waiting for DRAM."""
    latency_ms: float
    speedup: float | None = None
    """Baseline latency over this latency, both simulated; None for the baseline."""
    rows: tuple[EstimateRow, ...] = ()
    terms_ms: dict[str, float] = Field({})
    """Terms that add up to the latency, such as `launch`, `GEMMs` and `memory`."""
    kernels: int | None = None
    """Number of kernel launches; None for a target without launches."""
    utilization: Utilization | None = None
    energy: Energy | None = None
    roofline: Roofline | None = None
    settings: dict[str, str] = Field({})
    """Settings of the target, such as its clock."""
    calibration: str = ""
    """Source of the constants, or `uncalibrated`."""
    expected_error: str = ""
    """Expected relative error of the latency; empty when unknown."""
    assumed: tuple[str, ...] = ()
    """Keys of the target whose value has no source."""
    sensitivity: tuple[Sensitivity, ...] = ()
    """Effect of the assumed values, for targets that are mostly assumed."""
    provenance: Literal["simulated"] = "simulated"


class Accuracy(Value):
    """The metrics of one model on one data set."""

    dataset: str
    """`val`, or the name given in `data.also_evaluate`."""
    n: int
    """Number of images."""
    metrics: dict[str, float]
    """Metrics of the task by key, see `vitslim.tasks`: `top1` and `agreement`, `map`, `cosine`, ... Fractions are in
    [0, 1]. The dense model has none that compare with it."""
    runtime: Literal["torch", "onnxruntime"] = "torch"
    provenance: Literal["measured"] = "measured"


class Cost(Value):
    """Size and computation of a model. MACs include both attention matmuls, QK^T and PV."""

    params: int
    macs: int
    """Multiply-accumulates per image."""
    bops: int
    """Bit operations per image: MACs times both bit widths; 2:4 layers count half."""
    weight_bytes: int
    """Bytes of all parameters at their deployed width, with 2:4 layers dense, as the ONNX file stores them."""
    device_bytes: int
    """Bytes of all parameters on a device that compresses 2:4 weights."""


RESOLVED_KEY = "resolved key"
"""`layer` of a note on a recipe key whose value the run resolved."""


class LayerNote(Value):
    """One layer that a stage changed or skipped."""

    layer: str
    """Name of the parameter or axis."""
    result: str
    """Such as `INT8 per channel`, `2:4`, `kept 288 of 576`, or `skipped`."""
    reason: str = ""
    """Reason for skipping the layer, or for this result."""


class StageRecord(Value):
    """Results of one stage: a row of the report."""

    name: str
    """Unique in the run, such as `01-prune`; `00-dense` is the model before any stage."""
    kind: str
    method: str
    seconds: FiniteFloat
    """Duration of the stage."""
    cached: bool = False
    """Whether the stage was loaded from an earlier run."""
    key: str
    """Content key: hash of everything that the result depends on."""
    cost: Cost
    onnx_bytes: int
    """Size of the ONNX file of the model after the stage."""
    onnx_form: str | None = None
    """Profile, names, batch size and opset of that file, which follow the export stage; None for a float model before
    it, whose file is portable."""
    accuracies: tuple[Accuracy, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    accelerators: tuple[AcceleratorResult, ...] = ()
    """Results under the approximations of simulated accelerators."""
    profiles: tuple[OperatorProfile, ...] = ()
    """Times of its operators; empty where they were not profiled."""
    two_four: tuple[TwoFourUse, ...] = ()
    """Kernels of the layers with 2:4 weights, for each measured backend; empty for a model without such layers."""
    changes: tuple[LayerNote, ...] = ()
    skipped: tuple[LayerNote, ...] = ()
    metrics: dict[str, float] = Field({})
    """Metrics of the method, such as `kept_magnitude` or `sqnr_db`."""
    bits: tuple[TensorBits, ...] = ()
    """Learned bits; empty for a stage that learns none."""
    widths: PrunedWidths | None = None
    """Dimensions of every block before and after the stage; None if it pruned none, or does not record them."""


class Assumption(Value):
    """A key whose value has no source."""

    key: str
    value: str


class Report(Value):
    """All results of a run. Every renderer reads only this."""

    schema_version: int = REPORT_SCHEMA_VERSION
    name: str
    model: str
    model_kwargs: dict[str, int | float | str | bool | tuple[int, ...]] = Field({})
    """Arguments of `timm.create_model` that the recipe sets."""
    task: Task = "classify"
    dataset: str
    seed: int
    created: str
    """ISO 8601, UTC."""
    environment: Environment
    stages: tuple[StageRecord, ...]
    """In order: the first is the dense baseline, the last the exported model."""
    final_accuracies: tuple[Accuracy, ...] = ()
    """Of the exported file in ONNX Runtime."""
    parity: dict[str, float] = Field({})
    """Comparison of the exported file with its graph, such as `agreement` and `max_abs_error`."""
    gates: tuple[GateResult, ...] = ()
    token_pictures: tuple[TokenPicture, ...] = ()
    """Kept and squeezed tokens of the final model on sample images; empty for a model that squeezes no tokens."""
    assumptions: tuple[Assumption, ...] = ()
    data: tuple[str, ...] = ()
    """How the images and their labels were found: splits, skipped files, and the order of the classes."""
    warnings: tuple[str, ...] = ()
    model_file: str = "model.onnx"
    """Path of the exported model in the folder of the run."""
    files: dict[str, str] = Field({})
    """File name to sha256."""
