"""Where numbers are obtained: processor, cores, library versions. Nothing heavy is imported for it."""

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
CODE_PRODUCTS = {
    "amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "avx2": "AVX2",
    "i8mm": "I8MM", "asimddp": "SDOT",
}  # fmt: skip
"""Flag of a processor to the instructions with which it multiplies 8-bit codes, the fastest first."""


def device_name() -> str:
    """This machine's processor and its instructions for products of codes: `AMD EPYC 9R14 (AVX512-VNNI)`.

    Whether there are such instructions makes more of a difference to INT8 than which processor it is.
    """
    facts = _cpu_facts()
    named = (facts[key] for key in ("model name", "hardware", "cpu model") if key in facts)
    name = next(named, platform.processor() or platform.machine() or "unknown processor")
    flags = set(f"{facts.get('flags', '')} {facts.get('features', '')}".split())
    units = next((unit for flag, unit in CODE_PRODUCTS.items() if flag in flags), None)
    return f"{name} ({units})" if units else name


def _cpu_facts() -> dict[str, str]:
    """What the system says of its first processor, keys in lower case; empty where it says nothing."""
    facts: dict[str, str] = {}
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if value.strip():
                facts.setdefault(key.strip().lower(), value.strip())
    return facts


def _gpu() -> str:
    """Name of the GPU that PyTorch uses, where it is loaded and finds one; loading it takes a second."""
    torch = sys.modules.get("torch")
    return f" with {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment() -> Environment:
    """Processor, cores, and the versions of Python, vitslim and its libraries that are installed."""
    versions = {"python": platform.python_version(), "vitslim": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(device=device_name() + _gpu(), cores=cores(), versions=versions)
