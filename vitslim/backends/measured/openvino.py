"""OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from vitslim.backends.measured.runtime import Runtime
from vitslim.errors import BackendUnavailableError, InputError
from vitslim.workload.onnx_file import check_onnx_file
from vitslim.workload.session import BROKEN_HINT, Floats, bind_batch

INSTALL_HINT = "install it: pip install openvino"


class OpenVinoModel:
    """An image classifier in an ONNX file, ready to run in OpenVINO."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Read a file; `threads` 0 uses all cores. The model is compiled on the first run of each batch size.

        Raises InputError for a file that OpenVINO rejects or that has other inputs than one float32 tensor,
        BackendUnavailableError without OpenVINO.
        """
        check_onnx_file(path)
        self._runtime = _import_openvino()
        self._core: Any = self._runtime.Core()
        try:
            self._model: Any = self._core.read_model(str(path))
        except RuntimeError as error:
            raise InputError(f"OpenVINO rejects '{path}': {_reason(error)}", BROKEN_HINT) from error
        inputs = self._model.inputs
        if len(inputs) != 1 or inputs[0].element_type != self._runtime.Type.f32:
            found = ", ".join(i.element_type.get_type_name() for i in inputs)
            raise InputError(f"'{path}' needs one float32 input, but has {found or 'none'}",
                             "export an image classifier")  # fmt: skip
        self.path = path
        self._shape = _declared(inputs[0].partial_shape)
        self._settings = _compile_options(threads)
        self._compiled: dict[int, Any] = {}

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W)."""
        if len(images) not in self._compiled:
            self._compiled[len(images)] = self._request(images.shape)
        request = self._compiled[len(images)]
        request.infer({0: images}, share_inputs=True)
        logits: Floats = request.get_output_tensor(0).data.copy()
        return logits

    def convert(self, images: Floats) -> Floats:
        """Images in the type of the input, which is float32."""
        return images

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape (batch, C, H, W) of the input. Raises InputError when the file has another fixed batch size."""
        return bind_batch(self.path, self._shape, batch)

    def _request(self, shape: tuple[int, ...]) -> Any:
        try:
            model = self._model.clone()
            model.reshape(list(shape))
            return self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot run '{self.path}': {_reason(error)}", BROKEN_HINT) from error


OPENVINO = Runtime(
    name="openvino:cpu",
    title="OpenVINO",
    package="openvino",
    install_hint=INSTALL_HINT,
    open_model=OpenVinoModel,
    in_host_memory=True,
    two_four_note="OpenVINO does not tell whether a kernel uses 2:4 weights",
)


def _compile_options(threads: int) -> dict[str, Any]:
    """Return options for one stream with minimal latency and float32 arithmetic.

    The default of OpenVINO is bfloat16 on processors with such instructions, which changes the results.
    """
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def _declared(shape: Any) -> list[int | str | None]:
    """Return the sizes of a partial shape; a dynamic one is `?`."""
    return [int(dim.get_length()) if dim.is_static else "?" for dim in shape]


def _import_openvino() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(f"OpenVINO cannot be imported: {error}", INSTALL_HINT) from error
    return openvino  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    """Return the last line of an error, its reason; the lines before it are places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]
