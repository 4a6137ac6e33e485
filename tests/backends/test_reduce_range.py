"""`reduce_range: auto`: which processors and backends need weights with a reduced range."""

from __future__ import annotations

import pytest

from vitslim.backends.reduce_range import reduce_range_for

ORT, OPENVINO, CUDA = "onnxruntime:cpu", "openvino:cpu", "torch:cuda"


@pytest.mark.parametrize(
    ("backends", "flags", "machine", "value", "reason"),
    [
        ([ORT], {"avx2"}, "x86_64", True, "AVX2 has no VNNI"),
        ([OPENVINO], {"sse4_2"}, "x86_64", True, "x86_64 has no VNNI"),
        ([CUDA, ORT], {"avx2"}, "x86_64", True, "onnxruntime:cpu is measured"),
        ([ORT], {"avx2", "avx512_vnni"}, "x86_64", False, "AVX512-VNNI"),
        ([ORT], {"avx2", "avx_vnni"}, "x86_64", False, "AVX-VNNI"),
        ([OPENVINO], {"avx2", "avx512_vnni", "amx_int8"}, "x86_64", False, "AMX"),
        ([ORT], {"asimddp"}, "aarch64", False, "SDOT"),
        ([ORT], {"asimd"}, "aarch64", False, "ARM"),
        ([ORT], set(), "arm64", False, "ARM"),
        ([CUDA], {"avx2"}, "x86_64", False, "torch:cuda does not need it"),
        ([], {"avx2"}, "x86_64", False, "no measured backend"),
        ([ORT], set(), "", True, "the processor has no VNNI"),
    ],
)
def test_processors_without_wide_sums_need_a_reduced_range(
    backends: list[str], flags: set[str], machine: str, value: bool, reason: str
) -> None:
    found = reduce_range_for(backends, frozenset(flags), machine)
    assert found.value == value
    assert reason in found.reason
