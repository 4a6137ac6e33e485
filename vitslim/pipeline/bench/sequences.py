"""`bench --workload`: estimates of a sequence workload in a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.backends.simulated.simulator import SequenceSimulator
from vitslim.errors import UsageError
from vitslim.results import Estimate, Value


class SequenceResult(Value):
    """Estimates of one workload, one for each backend."""

    file: str
    estimates: tuple[Estimate, ...]


def bench_sequences(path: Path, backends: Sequence[str]) -> SequenceResult:
    """Return the estimate of a sequence workload on each backend; speedups are over the first.

    Raises UsageError for a backend that reads no sequence workloads, InputError for an invalid file.
    """
    estimates: list[Estimate] = []
    for name in backends:
        backend = parse_backend(name)
        if not isinstance(backend, Simulated) or not isinstance(backend.simulator, SequenceSimulator):
            raise UsageError(f"'{name}' reads no sequence workloads", "use sim:spatten or sim:spatten-1/8")
        found = backend.simulator.estimate_sequences(path)
        speedup = estimates[0].latency_ms / found.latency_ms if estimates else None
        estimates.append(found.model_copy(update={"speedup": speedup}))
    return SequenceResult(file=str(path), estimates=tuple(estimates))
