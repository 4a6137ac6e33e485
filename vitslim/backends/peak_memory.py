"""Peak memory of a model, measured in a process of its own.

`python -m vitslim.backends.peak_memory BACKEND FILE BATCH THREADS` is that process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

from vitslim.errors import BackendUnavailableError, InputError, VitslimError

RUNS = 2
"""Inferences before the peak is read; the second one reuses the memory of the first."""
STATUS = Path("/proc/self/status")


def peak_memory_bytes(backend: str, path: Path, batch: int, threads: int) -> int:
    """Return the rise of the resident memory of a fresh process while it opens a file and runs a batch, in bytes.

    It is the peak, less the memory before the file is opened, when Python and the runtime are loaded. It contains the
    weights, the activations and the code of the runtime that runs, and the mapped file where the runtime maps it.
    Raises BackendUnavailableError where the system does not tell the peak of a process, InputError if the process
    fails, such as for lack of memory.
    """
    if not STATUS.exists():
        hint = "remove `report.memory` and the gate `peak_memory_mb_max`, or measure on Linux"
        raise BackendUnavailableError("peak memory is measured on Linux only", hint)
    arguments = [sys.executable, "-m", __spec__.name, backend, str(path), str(batch), str(threads)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return int(done.stdout)
    if done.returncode == -signal.SIGKILL:
        message = f"the system ended the process that measured the memory of '{path}' at batch {batch}"
        raise InputError(message, "it needs more memory than there is: measure smaller batches")
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise InputError(f"the memory of '{path}' on {backend} cannot be measured: {last}", "run `vitslim bench` on it")


def main(backend: str, path: Path, batch: int, threads: int) -> int:
    """Return the rise of the resident memory of this process in bytes."""
    from vitslim.backends.registry import RUNTIMES

    runtime = RUNTIMES[backend]
    import_module(runtime.package)
    before = _kilobytes("VmRSS")
    model = runtime.open_model(path, threads)
    images = np.random.default_rng(0).standard_normal(model.input_shape(batch), dtype=np.float32)
    for _ in range(RUNS):
        model(model.convert(images))
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    """Return a size that Linux states of this process."""
    lines = (line.partition(":") for line in STATUS.read_text().splitlines())
    return next(int(value.split()[0]) for name, _, value in lines if name == field)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))  # noqa: T201
    except VitslimError as error:
        sys.exit(error.message)
