"""ONNX Runtime on the CPU."""

from __future__ import annotations

from vitslim.backends.measured.matmul_timing import measure_gemms, measure_matmuls
from vitslim.backends.measured.runtime import Runtime
from vitslim.workload.session import INSTALL_HINT, OnnxModel

ONNX_RUNTIME = Runtime(
    name="onnxruntime:cpu",
    title="ONNX Runtime",
    package="onnxruntime",
    install_hint=INSTALL_HINT,
    open_model=OnnxModel,
    time_gemms=measure_gemms,
    time_matmuls=measure_matmuls,
)
