"""Where numbers are obtained: processor, cores, library versions. Nothing heavy is imported for it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vitslim import __version__
from vitslim.results import Environment

LIBRARIES = ("torch", "timm", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino")
CPU_INFO = Path("/proc/cpuinfo")


def device_name() -> str:
    """Name of this machine's processor, such as `AMD EPYC 9R14`."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in {"model name", "hardware", "cpu model"} and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


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
