"""The environment of a measurement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitslim.backends.environment import cores, device_name, environment


def test_the_environment_names_processor_and_versions() -> None:
    here = environment()
    assert here.device == device_name() != ""
    assert here.cores == cores() >= 1
    assert {"vitslim", "onnxruntime", "torch", "numpy", "python"} <= set(here.versions)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ("model name\t: Xeon\nflags\t\t: avx2 avx512_vnni amx_int8\n\nmodel name\t: second\n", "Xeon (AMX)"),
        ("model name\t: EPYC\nflags\t\t: avx2 avx512f avx512_vnni\n", "EPYC (AVX512-VNNI)"),
        ("model name\t: EPYC\nflags\t\t: sse4_2 avx2 avx512f\n", "EPYC (AVX2)"),
        ("Features\t: fp asimddp\nHardware\t: Graviton\n", "Graviton (SDOT)"),
        ("model name\t: old\nflags\t\t: sse2\n", "old"),
    ],
)
def test_a_processor_is_named_with_its_int8_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr("vitslim.backends.environment.CPU_INFO", tmp_path / "cpuinfo")
    assert device_name() == name


def test_backends_start_without_torch() -> None:
    code = "import sys, vitslim.backends.registry, vitslim.backends.environment; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
