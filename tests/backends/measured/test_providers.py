"""ONNX Runtime on other execution providers: a missing one is refused, and never replaced by the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitslim.backends.measured.onnxruntime import PROVIDERS, on_provider
from vitslim.backends.measured.runtime import Runtime
from vitslim.errors import BackendUnavailableError
from vitslim.workload.session import OnnxModel, available_providers


@pytest.mark.parametrize("runtime", PROVIDERS, ids=lambda runtime: runtime.name)
def test_a_missing_provider_is_refused_with_the_package_to_install(runtime: Runtime) -> None:
    provider = runtime.open_model.keywords["provider"]  # type: ignore[attr-defined]
    if provider in available_providers():
        runtime.require()
        return
    with pytest.raises(BackendUnavailableError, match=provider) as caught:
        runtime.require()
    assert caught.value.exit_code == 4
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_cannot_start_is_no_fallback_to_the_cpu(small_model: Path) -> None:
    if "CUDAExecutionProvider" in available_providers():
        pytest.skip("needs an ONNX Runtime without CUDA")
    with pytest.raises(BackendUnavailableError, match="could not start CUDAExecutionProvider"):
        OnnxModel(small_model, provider="CUDAExecutionProvider")


def test_an_available_provider_runs_the_model(small_model: Path) -> None:
    other = next((name for name in available_providers() if name != "CPUExecutionProvider"), None)
    if other is None:
        pytest.skip("needs a second execution provider")
    runtime = on_provider("other", other, "")
    runtime.require()
    images = np.zeros(OnnxModel(small_model).input_shape(2), np.float32)
    assert np.allclose(runtime.open_model(small_model, 1)(images), OnnxModel(small_model)(images))
