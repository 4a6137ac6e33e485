"""Published speedups of whole models, compared with the simulated A100, into scripts/results/published.json.

Workloads are built from the dimensions of the models, with the kernels that vitslim finds in an exported file of the
same model. No weights and no export are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from time import process_time

from paths import RESULTS
from result_file import write_result

from vitslim.backends.simulated.gpu.estimate import estimate
from vitslim.backends.simulated.gpu.spec import load_gpu
from vitslim.backends.simulated.systolic.estimate import estimate as estimate_array
from vitslim.backends.simulated.systolic.spec import load_spec
from vitslim.workload import Kernel, Operator, Workload

RESULT = RESULTS / "published.json"
BITS = 16
"""Bits of weights and activations."""
RUNS = 5


@dataclass(frozen=True)
class Block:
    """Dimensions of one transformer block."""

    heads: int
    qk: int
    v: int
    mlp: int
    tokens_attention: int
    tokens_mlp: int
    """Tokens after the selection between attention and MLP."""


@dataclass(frozen=True)
class Vit:
    """Dimensions of a vision transformer."""

    width: int
    blocks: tuple[Block, ...]
    patch: int = 16
    patches: int = 196


def plain(width: int, depth: int, heads: int, tokens: int = 197, patch: int = 16) -> Vit:
    """Return a model of equal blocks whose MLP is four times as wide as the embedding."""
    block = Block(heads, width // heads, width // heads, 4 * width, tokens, tokens)
    return Vit(width, (block,) * depth, patch, tokens - 1)


def evit(width: int, depth: int, heads: int, keep_rate: float) -> Vit:
    """Return EViT, which keeps ceil(keep_rate * patches) tokens and one fused token at blocks 3, 6 and 9."""
    blocks, tokens = [], 197
    for index in range(depth):
        after = 1 + ceil(keep_rate * (tokens - 1)) + 1 if index in (3, 6, 9) else tokens
        blocks.append(Block(heads, width // heads, width // heads, 4 * width, tokens, after))
        tokens = after
    return Vit(width, tuple(blocks))


def revit(width: int) -> Vit:
    """Return ReViT with the dimensions of its released script, for 198 tokens."""
    h, q = round(width * 0.005), round(width * 0.05 / 8)
    heads = [10, 2 * h, 2 * h, *(4 * h,) * 6, 2 * h, 2 * h, 10]
    qk = [16 * q, 8 * q, 8 * q, *(16 * q,) * 6, 8 * q, 8 * q, 16 * q]
    mlp = [3 * width * (2 if 3 <= i < 9 else 1) for i in range(12)]
    return Vit(width, tuple(Block(heads[i], qk[i], 64, mlp[i], 198, 198) for i in range(12)))


class _Writer:
    """Collects the operators and kernels of a workload."""

    def __init__(self, batch: int, two_four: bool) -> None:
        self.batch, self._sparsity = batch, "2:4" if two_four else ""
        self.operators: list[Operator] = []
        self.kernels: list[Kernel] = []

    def kernel(self, operators: Sequence[Operator], read: int, written: int) -> None:
        """Add one launch; `read` and `written` are elements for one image."""
        first = len(self.operators)
        self.operators += operators
        self.kernels.append(
            Kernel(tuple(range(first, first + len(operators))), {BITS: read * self.batch}, {BITS: written * self.batch})
        )

    def linear(self, role: str, rows: int, n: int, k: int, further: int = 0, prunable: bool = True) -> None:
        """Add a layer with the operators fused to it; `further`: elements that it reads besides its input."""
        operator = Operator(role, "gemm", "MatMul", m=rows * self.batch, n=n, k=k, weight=True, weight_bits=BITS,
                            activation_bits=BITS, role=role, sparsity=self._sparsity if prunable else "")  # fmt: skip
        self.kernel([operator], rows * k + further, rows * n)

    def other(self, kind: str, op: str, read: int, written: int) -> None:
        """Add a kernel without GEMM."""
        self.kernel([Operator(kind, op, kind)], read, written)  # type: ignore[arg-type]


def workload(model: Vit, batch: int, two_four: bool = False) -> Workload:
    """Return the workload of one inference; `two_four`: 2:4 weights in the four layers of every block."""
    w, width = _Writer(batch, two_four), model.width
    w.linear("patch_embed.proj", model.patches, width, 3 * model.patch**2, prunable=False)
    for b in model.blocks:
        n, after = b.tokens_attention, b.tokens_mlp
        w.other("LayerNormalization", "norm", n * width, n * width)
        qkv, value = b.heads * (2 * b.qk + b.v), b.heads * b.v
        w.linear("attn.qkv", n, qkv, width)
        matmuls = [
            Operator(role, "attention", "MatMul", m=n, n=columns, k=reduce, count=b.heads * batch, weight_bits=BITS,
                     activation_bits=BITS, role=role)
            for role, columns, reduce in (("QK^T", n, b.qk), ("PV", b.v, n))
        ]  # fmt: skip
        w.kernel(matmuls, n * qkv, n * value)
        w.linear("attn.proj", n, width, value, n * width)
        if after != n:
            w.other("TopK", "select", n, after)
            w.other("GatherElements", "select", n * width, after * width)
        w.other("LayerNormalization", "norm", after * width, after * width)
        w.linear("mlp.fc1", after, b.mlp, width)
        w.linear("mlp.fc2", after, width, b.mlp, after * width)
    w.linear("head", 1, 1000, width, prunable=False)
    return Workload(batch, tuple(w.operators), 0, 0, kernels=tuple(w.kernels))


@dataclass(frozen=True)
class Comparison:
    """One published speedup, and the two workloads that give the simulated one."""

    name: str
    published: float
    before: Workload
    after: Workload
    why: str
    """Source of the difference between published and simulated."""


def comparisons() -> list[Comparison]:
    """Return all comparisons."""
    base = workload(plain(768, 12, 12), 256)
    huge = plain(1280, 32, 16, 257, 14)
    small = {rate: workload(evit(384, 12, 6, rate), 256) for rate in (0.9, 0.7, 0.5)}
    rows = [
        Comparison("ViT-B/16, batch 256, 2:4", 1.024, base, workload(plain(768, 12, 12), 256, True), COPY),
        Comparison("ViT-H/14, batch 256, 2:4", 1.068, workload(huge, 256), workload(huge, 256, True), SEARCH),
        Comparison("EViT DeiT-S 0.7 over 0.9", 4385 / 3197, small[0.9], small[0.7], FUSED),
        Comparison("EViT DeiT-S 0.5 over 0.9", 5408 / 3197, small[0.9], small[0.5], FUSED),
    ]
    others = {
        "DeiT-S over DeiT-B": (2.44, plain(384, 12, 6)),
        "DeiT-T over DeiT-B": (5.18, plain(192, 12, 3)),
        "ReViT-S over DeiT-B": (2.31, revit(384)),
        "ReViT-T over DeiT-B": (4.75, revit(176)),
    }
    return rows + [Comparison(name, ratio, base, workload(m, 256), V100) for name, (ratio, m) in others.items()]


COPY = "the simulation assumes a separate kernel for each transposed copy"
SEARCH = "as above; constants are fitted to the best algorithm of a search, PyTorch uses the default"
FUSED = "simulated: fused attention, FP16; published: PyTorch in 2022"
V100 = "published: V100, eager PyTorch; simulated: fused kernels, which favor narrow models"


def _milliseconds() -> dict[str, float]:
    """Return the shortest CPU time of an estimate of ViT-B/16 at batch 1, by target."""
    model = workload(plain(768, 12, 12), 1)
    gpu, array = load_gpu("a100"), load_spec({"energy": "horowitz45"})
    targets: dict[str, Callable[[], object]] = {
        "sim:a100": lambda: estimate(model, gpu),
        "sim:systolic": lambda: estimate_array(model, array),
    }
    return {name: 1e3 * min(_seconds(call) for _ in range(RUNS)) for name, call in targets.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = process_time()
    call()
    return process_time() - start


def run() -> dict[str, float]:
    """Simulate both models of each comparison and return all speedups."""
    spec = load_gpu("a100")
    figures: dict[str, float] = {}
    rows = []
    for one in comparisons():
        before, after = estimate(one.before, spec), estimate(one.after, spec)
        simulated = before.latency_ms / after.latency_ms
        figures |= {f"{one.name}, published": one.published, f"{one.name}, simulated": simulated}
        rows.append({"name": one.name, "published": one.published, "simulated": simulated, "why": one.why,
                     "before_ms": before.latency_ms, "after_ms": after.latency_ms})  # fmt: skip
    tiny = plain(192, 12, 3)
    dense, sparse = (estimate(workload(tiny, 1, on), spec).latency_ms for on in (False, True))
    figures |= {"DeiT-T batch 1, dense ms": dense, "DeiT-T batch 1, 2:4 ms": sparse}
    figures |= {f"ViT-B/16 estimate on {name}, ms": ms for name, ms in _milliseconds().items()}
    write_result(RESULT, rows=rows, figures=figures)
    return figures
