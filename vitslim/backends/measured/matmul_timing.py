"""Latencies of single matmuls on ONNX Runtime: one model with one MatMul for each shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.matmul_times import MatmulTimes, batched
from vitslim.backends.measured.rounds import runs_per_round, shuffled
from vitslim.errors import UsageError
from vitslim.latency_grid import Precision, Shape
from vitslim.progress import Progress
from vitslim.workload.session import Floats, OnnxModel, open_session

ROUNDS = 8
WAITING_MAX = 0.2
"""Share of its time that the dense model may wait for the processor without a warning."""
EMPTY: Shape = (1, 1, 1, 1)
"""A matmul of one MAC: the time of its model is the overhead of calling the runtime."""
IR_VERSION, OPSET = 10, 21

K = TypeVar("K", bound=Hashable)


def measure_matmuls(
    shapes: Sequence[Shape], dense: Path, batch: int, threads: int, precision: Precision, progress: Progress
) -> MatmulTimes:
    """Return the median milliseconds of each shape and of the dense model, interleaved over 8 rounds.

    A round opens one session after the other, so that only one shape's weights are in memory at a time. The overhead
    of a call is measured too and subtracted from every shape; the time of the dense model contains it.
    Raises InputError for a bad file, BackendUnavailableError without ONNX Runtime.
    """
    run_dense = _dense_run(OnnxModel(dense, threads), batch)
    waiting = waiting_share(lambda: timed_seconds(run_dense))
    if waiting > WAITING_MAX:
        progress.say(
            f"other programs keep the processor busy: the dense model waits {100 * waiting:.0f} % of its time, so "
            "operators other than matmuls will look too slow. Build the table again on an idle machine"
        )
    timed: list[Shape | None] = [None, EMPTY, *shapes]
    order = [shape for index in range(ROUNDS) for shape in shuffled(timed, index)]

    def open_run(shape: Shape | None) -> Callable[[], object]:
        return run_dense if shape is None else matmul_run(batched(shape, batch), threads, precision)

    label = f"{len(shapes)} matmuls, batch {batch}, threads {threads}"
    runs = _seconds_of(progress.track(order, label), open_run)
    median = {shape: 1e3 * float(np.median(times)) for shape, times in runs.items()}
    return MatmulTimes(
        ms={shape: max(0.0, median[shape] - median[EMPTY]) for shape in shapes},
        dense_ms=median[None],
        n=min(len(runs[shape]) for shape in shapes),
        spread=float(np.median([np.subtract(*np.percentile(t, (75, 25))) / np.median(t) for t in runs.values()])),
    )


def measure_gemms(gemms: Sequence[Gemm], threads: int, progress: Progress) -> list[float]:
    """Return the median microseconds of each GEMM over 8 interleaved rounds, without the overhead of a call.

    Raises UsageError for anything but dense FP32 GEMMs.
    """
    for g in gemms:
        if g.dtype != "FP32" or g.sparse:
            raise UsageError(
                f"onnxruntime:cpu does not time {g.dtype} {'2:4' if g.sparse else 'dense'} GEMMs",
                "set dtype FP32 and sparse 0, or use a simulated backend such as sim:a100",
            )
    shapes = {(g.count, g.m, g.k, g.n): None for g in gemms}
    order = [shape for _ in range(ROUNDS) for shape in (EMPTY, *shapes)]
    label = f"{len(shapes)} GEMMs, threads {threads}"
    runs = _seconds_of(progress.track(order, label), lambda shape: matmul_run(shape, threads))
    median = {shape: 1e6 * float(np.median(times)) for shape, times in runs.items()}
    return [max(0.001, median[g.count, g.m, g.k, g.n] - median[EMPTY]) for g in gemms]


def _seconds_of(order: Iterable[K], open_run: Callable[[K], Callable[[], object]]) -> Mapping[K, list[float]]:
    """Return the seconds of all runs of each key; a key is opened anew each time it occurs in `order`."""
    runs: dict[K, list[float]] = {}
    for key in order:
        runs.setdefault(key, []).extend(timed_seconds(open_run(key)))
    return runs


def timed_seconds(run: Callable[[], object]) -> list[float]:
    """Return the seconds of about 20 ms of runs, after one or two warm-up runs."""
    run()
    repeats = runs_per_round(_seconds(run))
    return [_seconds(run) for _ in range(repeats)]


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def waiting_share(run: Callable[[], object]) -> float:
    """Return the fraction, in [0, 1], of the time of a run in which no thread of this process ran."""
    start, worked = perf_counter(), process_time()
    run()
    return max(0.0, 1 - (process_time() - worked) / (perf_counter() - start))


def _dense_run(model: OnnxModel, batch: int) -> Callable[[], object]:
    images = np.random.default_rng(0).standard_normal(model.input_shape(batch), dtype=np.float32)
    return lambda: model(images)


def matmul_run(shape: Shape, threads: int, precision: Precision = "float32") -> Callable[[], object]:
    """Return a function that runs one MatMul; inputs and output are bound in advance, so nothing else is timed.

    precision: of a matmul by a weight; int8 multiplies integers to 32-bit sums.
    """
    count, rows, reduce, columns = shape
    if count == 1:
        inputs, weight = {"a": _random(rows, reduce)}, _random(reduce, columns)
        if precision == "int8":
            return _integer_run(rows, reduce, columns, threads)
    else:
        inputs, weight = {"a": _random(count, rows, reduce), "b": _random(count, reduce, columns)}, None
    session = open_session(matmul_model(inputs, weight), "a single matmul", threads=threads)
    binding: Any = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("c")
    return lambda: session.run_with_iobinding(binding)


def _integer_run(rows: int, reduce: int, columns: int, threads: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    activations = generator.integers(0, 256, (rows, reduce), dtype=np.uint8)
    weight = generator.integers(-64, 65, (reduce, columns), dtype=np.int8)
    session = open_session(integer_matmul_model(rows, weight), "a single integer matmul", threads=threads)
    binding: Any = session.io_binding()
    binding.bind_cpu_input("a", activations)
    binding.bind_output("c")
    return lambda: session.run_with_iobinding(binding)


def integer_matmul_model(rows: int, weight: np.ndarray[Any, np.dtype[np.int8]]) -> bytes:
    """Return a serialized ONNX model of the integer matmul `c = a b`: uint8 (rows, k) by int8 weights (k, n)."""
    reduce = len(weight)
    declared = [helper.make_tensor_value_info("a", TensorProto.UINT8, (rows, reduce))]
    result = helper.make_tensor_value_info("c", TensorProto.INT32, None)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "matmul", declared, [result], [numpy_helper.from_array(weight, "b")])
    opset = helper.make_opsetid("", OPSET)
    model: onnx.ModelProto = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
    data: bytes = model.SerializeToString()
    return data


def matmul_model(inputs: Mapping[str, Floats], weight: Floats | None) -> bytes:
    """Return a serialized ONNX model of `c = a b`; `b` is a constant weight or the second input."""
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in inputs.items()]
    constants = [] if weight is None else [numpy_helper.from_array(weight, "b")]
    result = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "matmul", declared, [result], constants)
    opset = helper.make_opsetid("", OPSET)
    model: onnx.ModelProto = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
    data: bytes = model.SerializeToString()
    return data


def _random(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
