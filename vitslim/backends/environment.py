"""The environment of a measurement: processor, cores and library versions, without importing the libraries."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vitslim.results import Environment
from vitslim.version import __version__

LIBRARIES = ("torch", "timm", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino")
CPU_INFO = Path("/proc/cpuinfo")
INTEGER_INSTRUCTIONS = {
    "amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "avx2": "AVX2",
    "i8mm": "I8MM", "asimddp": "SDOT",
}  # fmt: skip
"""Processor flag to the name of its INT8 matmul instructions, the fastest first."""


def device_name() -> str:
    """Return the processor of this machine and its INT8 instructions, such as `AMD EPYC 9R14 (AVX512-VNNI)`.

    The instructions are part of the name because INT8 latency depends on them.
    """
    facts = _cpu_facts()
    names = (facts[key] for key in ("model name", "hardware", "cpu model") if key in facts)
    name = next(names, platform.processor() or platform.machine() or "unknown processor")
    flags = cpu_flags()
    instructions = next((title for flag, title in INTEGER_INSTRUCTIONS.items() if flag in flags), None)
    return f"{name} ({instructions})" if instructions else name


def cpu_flags() -> frozenset[str]:
    """Return the flags of the processor, in the words of Linux; empty on other systems."""
    facts = _cpu_facts()
    return frozenset(f"{facts.get('flags', '')} {facts.get('features', '')}".split())


def _cpu_facts() -> dict[str, str]:
    """Return the entries of /proc/cpuinfo for the first processor, keys in lower case; empty without that file."""
    facts: dict[str, str] = {}
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if value.strip():
                facts.setdefault(key.strip().lower(), value.strip())
    return facts


def _gpu() -> str:
    """Return the name of the GPU when PyTorch is already imported and finds one; importing it here would be slow."""
    torch = sys.modules.get("torch")
    return f" with {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment() -> Environment:
    """Return processor, cores, and the versions of Python, vitslim and the installed libraries."""
    versions = {"python": platform.python_version(), "vitslim": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(device=device_name() + _gpu(), cores=cores(), versions=versions)
