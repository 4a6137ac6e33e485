"""Compute cycles of the systolic target by its closed form and by SCALE-Sim, and the CPU time of both.

Simulates the six GEMMs of a DeiT-Tiny block on four configurations. SCALE-Sim needs an older NumPy than vitslim, so uv
creates an environment for it in build/scalesim on the first call. It runs in a process of its own, whose start does not
count; its traces are switched off as far as its interface allows.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
from paths import RESULTS, ROOT
from result_file import write_result

from vitslim.backends.simulated.systolic.cycles import Array, compute_cycles

HOME = ROOT / "build" / "scalesim"
RESULT = RESULTS / "systolic.json"
PACKAGES = ("scalesim==3.0.0", "numpy<2.3")
REPEATS, INNER = 20, 50

GEMMS = {
    "qkv": (197, 576, 192), "qk_t": (197, 197, 64), "av": (197, 64, 197), "proj": (197, 192, 192),
    "fc1": (197, 768, 192), "fc2": (197, 192, 768),
}  # fmt: skip
ARRAYS = (Array(128, 128, "ws"), Array(128, 128, "os"), Array(128, 128, "is"), Array(32, 32, "ws"))

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {columns}
IfmapSramSzkB: 512
FilterSramSzkB: 512
OfmapSramSzkB: 256
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: {dataflow}
Bandwidth: 10
ReadRequestBuffer: 512
WriteRequestBuffer: 512
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
SparseRep: ellpack_block
OptimizedMapping: false
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""
"""SCALE-Sim requires every section."""

DRIVER = """import sys, time
from scalesim.scale_sim import scalesim
folder = sys.argv[1]
start = time.process_time()
tool = scalesim(save_disk_space=True, verbose=False, config=folder + "/array.cfg", topology=folder + "/gemms.csv",
                layout=folder + "/layout.csv", input_type_gemm=True)
tool.run_scale(top_path=folder)
print("seconds", time.process_time() - start)
"""


def run() -> dict[str, float]:
    """Simulate each configuration with both and return cycles and seconds; exit if any cycles differ."""
    python = _environment()
    figures: dict[str, float] = {}
    for array in ARRAYS:
        name = f"{array.rows}x{array.columns} {array.dataflow}"
        seconds, cycles = _scalesim(python, array)
        ours, found = _closed_form(array)
        if found != cycles:
            sys.exit(f"error: {name}: SCALE-Sim counts {cycles} cycles, the closed form {found}")
        figures |= {f"{name}, SCALE-Sim s": seconds, f"{name}, closed form s": ours, f"{name}, ratio": seconds / ours,
                    f"{name}, equal cycles": float(len(found))}  # fmt: skip
    figures["minimum speedup"] = min(value for key, value in figures.items() if key.endswith(", ratio"))
    write_result(RESULT, packages=PACKAGES, figures=figures)
    return figures


def _environment() -> Path:
    """Return the Python interpreter of SCALE-Sim's environment, which is created if it does not exist."""
    python = HOME / "bin" / "python"
    if not (HOME / ".ready").exists():
        uv = shutil.which("uv") or str(ROOT / ".venv" / "uv" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", str(HOME)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True)
        (HOME / ".ready").touch()
    return python


def _scalesim(python: Path, array: Array) -> tuple[float, list[int]]:
    """Return the CPU seconds of the simulation and the compute cycles of each GEMM."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = {"rows": array.rows, "columns": array.columns, "dataflow": array.dataflow}
        (folder / "array.cfg").write_text(CONFIG.format(**values), encoding="utf-8")
        rows = "".join(f"{gemm}, {m}, {n}, {k},\n" for gemm, (m, n, k) in GEMMS.items())
        (folder / "gemms.csv").write_text(f"Layer, M, N, K,\n{rows}", encoding="utf-8")
        layout = "".join(f"{gemm}, {', '.join(['1'] * 20)},\n" for gemm in GEMMS)
        (folder / "layout.csv").write_text(f"Layer, {', '.join(['factor'] * 20)},\n{layout}", encoding="utf-8")
        (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
        command = [str(python), str(folder / "driver.py"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            sys.exit(f"error: SCALE-Sim failed: {done.stderr.strip()[-600:]}")
        seconds = float(next(line for line in done.stdout.splitlines() if line.startswith("seconds")).split()[1])
        with (folder / "run" / "COMPUTE_REPORT.csv").open(newline="", encoding="utf-8") as file:
            report = list(csv.DictReader(file, skipinitialspace=True))
    column = next(name for name in report[0] if name.strip() == "Total Cycles")
    return seconds, [int(float(row[column])) for row in report]


def _closed_form(array: Array) -> tuple[float, list[int]]:
    """Return the shortest CPU seconds for all GEMMs together, and the compute cycles of each."""
    m, n, k = np.array(list(GEMMS.values())).T
    seconds = []
    for _ in range(REPEATS):
        start = process_time()
        for _ in range(INNER):
            found = compute_cycles(m, n, k, array)
        seconds.append((process_time() - start) / INNER)
    return min(seconds), [int(value) for value in found]
