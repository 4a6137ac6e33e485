"""Times of single matrix products on ONNX Runtime, for latency tables: one model with one MatMul for each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitslim.backends.measured.onnxruntime import OnnxModel, open_session
from vitslim.backends.measured.rounds import rotated, runs_per_round
from vitslim.backends.products import ProductTimes, for_batch
from vitslim.latency_grid import Shape
from vitslim.progress import Progress

ROUNDS = 8
BUSY = 0.2
"""Share of its time that the dense model may wait for the processor before the table is not to be trusted."""

NOTHING: Shape = (1, 1, 1, 1)
"""A product that takes no time: what its model takes is the overhead of calling the runtime."""

IR_VERSION, OPSET = 10, 21

Floats = npt.NDArray[np.float32]


def measure_products(
    shapes: Sequence[Shape], dense: Path, batch: int, threads: int, progress: Progress
) -> ProductTimes:  # fmt: skip
    """Median milliseconds of each shape and of the dense model, all interleaved over 8 rounds.

    A round opens one session after the other, so that weights of one shape at a time are in memory. The overhead of a
    call is measured along and taken off every shape; the dense model keeps its own.
    Raises InputError for a bad file, BackendUnavailableError without ONNX Runtime.
    """
    whole = _whole_model(OnnxModel(dense, threads), batch)
    waited = waiting_share(lambda: timed_seconds(whole))
    if waited > BUSY:
        progress.say(
            f"other programs keep the processor busy: the dense model waits {100 * waited:.0f} % of its time, single "
            "products hardly; what is not products will look too slow. Build the table again on an idle machine"
        )
    timed: list[Shape | None] = [None, NOTHING, *shapes]
    runs: dict[Shape | None, list[float]] = {shape: [] for shape in timed}
    steps = [shape for index in range(ROUNDS) for shape in rotated(timed, index * len(timed) // ROUNDS)]
    for shape in progress.track(steps, f"{len(shapes)} products, batch {batch}, threads {threads}"):
        run = whole if shape is None else single_product(for_batch(shape, batch), threads)
        runs[shape] += timed_seconds(run)
    median = {shape: 1e3 * float(np.median(times)) for shape, times in runs.items()}
    return ProductTimes(
        ms={shape: max(0.0, median[shape] - median[NOTHING]) for shape in shapes},
        dense_ms=median[None],
        n=min(len(runs[shape]) for shape in shapes),
        spread=float(np.median([np.subtract(*np.percentile(t, (75, 25))) / np.median(t) for t in runs.values()])),
    )


def timed_seconds(run: Callable[[], object]) -> list[float]:
    """Seconds of about 20 ms worth of runs, after one or two that warm up."""
    run()
    repeats = runs_per_round(_seconds(run))
    return [_seconds(run) for _ in range(repeats)]


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def waiting_share(run: Callable[[], object]) -> float:
    """Fraction of the time of a run in which no thread of this process ran, in [0, 1]."""
    start, worked = perf_counter(), process_time()
    run()
    return max(0.0, 1 - (process_time() - worked) / (perf_counter() - start))


def _whole_model(model: OnnxModel, batch: int) -> Callable[[], object]:
    images = np.random.default_rng(0).standard_normal(model.input_shape(batch), dtype=np.float32)
    return lambda: model(images)


def single_product(shape: Shape, threads: int) -> Callable[[], object]:
    """A session of one MatMul whose inputs and output are bound beforehand: a run is the product alone."""
    count, rows, reduce, columns = shape
    if count == 1:
        inputs, weight = {"a": _values(rows, reduce)}, _values(reduce, columns)
    else:
        inputs, weight = {"a": _values(count, rows, reduce), "b": _values(count, reduce, columns)}, None
    session = open_session(one_product(inputs, weight), "a single product", threads)
    binding: Any = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("c")
    return lambda: session.run_with_iobinding(binding)


def one_product(inputs: dict[str, Floats], weight: Floats | None) -> bytes:
    """A serialized ONNX model of `c = a b`; `b` is a constant weight or the second input."""
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in inputs.items()]
    constants = [] if weight is None else [numpy_helper.from_array(weight, "b")]
    result = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", declared, [result], constants)
    opset = helper.make_opsetid("", OPSET)
    model: onnx.ModelProto = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
    data: bytes = model.SerializeToString()
    return data


def _values(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
