"""ONNX Runtime on each of its execution providers."""

from __future__ import annotations

from functools import partial

from vitslim.backends.measured.matmul_timing import measure_gemms, measure_matmuls
from vitslim.backends.measured.operator_times import operator_times
from vitslim.backends.measured.runtime import Runtime
from vitslim.errors import BackendUnavailableError
from vitslim.workload.session import CPU_PROVIDER, INSTALL_HINT, OnnxModel, available_providers

PACKAGE = "onnxruntime"
NO_SPARSE_INFORMATION = "ONNX Runtime does not tell whether a kernel uses 2:4 weights"
TENSORRT_NOTE = (
    "ONNX Runtime builds the engine without sparse kernels; `vitslim bench FILE.onnx --tensorrt-log LOG` reads what "
    "`trtexec --sparsity=enable --verbose` chooses"
)


def on_provider(
    name: str,
    provider: str,
    install_hint: str,
    on_cpu: bool = False,
    two_four_note: str = NO_SPARSE_INFORMATION,
) -> Runtime:
    """Return ONNX Runtime on an execution provider. A provider that is missing is an error, no fallback to the CPU."""

    def check() -> None:
        """Raise BackendUnavailableError unless the installed package has the provider."""
        found = available_providers()
        if provider not in found:
            message = f"the installed ONNX Runtime has no {provider}, only {', '.join(found)}"
            raise BackendUnavailableError(message, install_hint)

    return Runtime(
        name=f"onnxruntime:{name}",
        title="ONNX Runtime",
        package=PACKAGE,
        install_hint=install_hint,
        open_model=partial(OnnxModel, provider=provider),
        uses_threads=on_cpu,
        reopens=on_cpu,
        check_device=check,
        in_host_memory=on_cpu,
        profile=partial(operator_times, provider=provider),
        two_four_note=two_four_note,
    )


ONNX_RUNTIME = Runtime(
    name="onnxruntime:cpu",
    title="ONNX Runtime",
    package=PACKAGE,
    install_hint=INSTALL_HINT,
    open_model=OnnxModel,
    time_gemms=measure_gemms,
    time_matmuls=measure_matmuls,
    in_host_memory=True,
    profile=partial(operator_times, provider=CPU_PROVIDER),
    two_four_note=NO_SPARSE_INFORMATION,
)
PROVIDERS = (
    on_provider("cuda", "CUDAExecutionProvider", "pip install onnxruntime-gpu, in place of onnxruntime"),
    on_provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        "pip install onnxruntime-gpu and TensorRT",
        two_four_note=TENSORRT_NOTE,
    ),
    on_provider(
        "openvino", "OpenVINOExecutionProvider", "pip install onnxruntime-openvino, in place of onnxruntime", True
    ),
    on_provider("xnnpack", "XnnpackExecutionProvider", "build ONNX Runtime with --use_xnnpack", True),
    on_provider("dml", "DmlExecutionProvider", "on Windows: pip install onnxruntime-directml, in place of onnxruntime"),
    on_provider("coreml", "CoreMLExecutionProvider", "use the package onnxruntime for macOS"),
)
"""ONNX Runtime on other execution providers than the CPU's."""
