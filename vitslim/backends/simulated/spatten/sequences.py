"""Sequence workloads of the SpAtten release: one query of one head in each line of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitslim.backends.simulated.simulator import Ints
from vitslim.backends.simulated.spatten.estimate import CALIBRATION, EXPECTED, attention_time, effective_tflops, terms
from vitslim.backends.simulated.spatten.head_work import NO_SELECTION, HeadWork
from vitslim.backends.simulated.spatten.power import energy_parts
from vitslim.backends.simulated.spatten.refined import stored_bits
from vitslim.backends.simulated.spatten.spec import SpattenSpec
from vitslim.errors import InputError
from vitslim.results import Estimate, EstimateRow

COLUMNS = (
    "iteration_id", "layer_id", "head_id", "embedding_length_D", "sentence_length_L", "key_fetch_num",
    "value_fetch_num", "quant_key_bit", "quant_query_bit", "quant_value_bit", "if_requant", "auto_requant_incre",
    "if_topk", "topk",
)  # fmt: skip
YES, NO = {"true", "1"}, {"false", "0"}
LARGEST = 2**31


class SequenceWorkload:
    """A workload of generation steps, layers and heads."""

    def __init__(self, lengths: Ints, work: HeadWork) -> None:
        """lengths: keys of each query before pruning, int64 (steps, layers, heads)."""
        self.lengths, self.work = lengths, work

    @property
    def refetched(self) -> int:
        """Queries that read low bits."""
        return int(self.work.refetched.sum())

    @property
    def row_reduction(self) -> float:
        """K and V rows without pruning over the rows that are read."""
        return 2 * int(self.lengths.sum()) / int((self.work.keys + self.work.values).sum())

    def dram_reduction(self, low_bits: bool) -> float:
        """Bits of K and V in FP32 without pruning over the bits that are read, with or without the low bits of K."""
        w = self.work
        bits = w.keys * stored_bits(w.key_bits) + w.values * stored_bits(w.value_bits)
        low = w.refetched * w.keys * w.low_bits if low_bits else np.zeros_like(w.keys)
        return float((64 * w.dim * self.lengths).sum() / (w.dim * (bits + low)).sum())


def read_sequences(path: Path) -> SequenceWorkload:
    """Read the CSV file of a workload. A line whose first field is not a number, such as the last one, is skipped.

    Raises InputError for a file that cannot be read, a missing column, an invalid value with its line, and unless each
    head of each layer of each step, counted from 0, has one line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"'{path}' has no column {missing[0]}", f"its columns are {reader.fieldnames}")
            rows = [
                _row(row, f"line {reader.line_num} of '{path}'")
                for row in reader
                if (row["iteration_id"] or "").strip().isdigit()
            ]
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", "give a CSV file of a workload") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a CSV file", "give a CSV file of a workload") from error
    if not rows:
        raise InputError(f"'{path}' contains no queries", "write one query per line below the column names")
    return _workload(np.array(rows, np.int64), path)


def _row(row: Mapping[str, str | None], where: str) -> list[int]:
    return [_value(name, row[name], where) for name in COLUMNS]


def _value(name: str, text: str | None, where: str) -> int:
    word = (text or "").strip().lower()
    if name.startswith("if_"):
        if word not in YES | NO:
            raise InputError(f"{where}: {name} is '{text}'", "allowed: True, False")
        return int(word in YES)
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    least = -1 if "bit" in name or name in {"topk", "auto_requant_incre"} else 0 if name.endswith("_id") else 1
    if not (least <= value < LARGEST and value == int(value)):
        raise InputError(f"{where}: {name} is '{text}'", f"allowed: an integer of at least {least}")
    return int(value)


def _workload(values: Ints, path: Path) -> SequenceWorkload:
    places = values[:, :3]
    shape = tuple(int(n) + 1 for n in places.max(axis=0))
    if len(places) != np.prod(shape) or len(np.unique(places, axis=0)) != len(places):
        raise InputError(
            f"'{path}' has {len(places)} lines, but {' x '.join(map(str, shape))} steps, layers and heads",
            "give each head of each layer of each step one line; all ids count from 0",
        )
    grid = np.zeros((*shape, values.shape[1]), np.int64)
    grid[tuple(places.T)] = values
    c = {name: grid[..., i] for i, name in enumerate(COLUMNS)}
    ones = np.ones(shape, np.int64)
    return SequenceWorkload(c["sentence_length_L"], HeadWork(
        ones, c["key_fetch_num"], c["value_fetch_num"], c["value_fetch_num"], c["if_requant"],
        np.where(c["if_topk"] > 0, c["topk"], NO_SELECTION), c["embedding_length_D"], c["quant_key_bit"],
        c["quant_value_bit"], c["quant_query_bit"], np.maximum(0, c["auto_requant_incre"]),
    ))  # fmt: skip


def estimate_sequences(path: Path, spec: SpattenSpec, backend: str) -> Estimate:
    """Return the estimate of all steps of a workload, a row for each layer; attention only."""
    found = read_sequences(path)
    work, time = found.work, attention_time(found.work, spec)
    layer_flops = np.asarray(work.flops.sum(axis=2), np.float64)
    parts = energy_parts(time.cycles, layer_flops, time.dram_bytes, spec)
    peak = spec.qk_mult + spec.pv_mult
    rows = []
    for i in range(time.cycles.shape[1]):
        cycles, macs = float(time.cycles[:, i].sum()), float(layer_flops[:, i].sum()) / 2
        rows.append(EstimateRow(
            name=f"attention of layer {i}", op="attention", count=time.cycles.shape[0], macs=round(macs),
            cycles=round(cycles), latency_us=cycles / (spec.clock_ghz * 1e3), utilization=macs / (cycles * peak),
            dram_bytes=round(float(time.dram_bytes[:, i].sum())), energy_uj=1e3 * float(parts.total[:, i].sum()),
            calibration=CALIBRATION[spec.model], expected_error=EXPECTED[spec.model],
        ))  # fmt: skip
    total = float(time.cycles.sum())
    return Estimate(
        backend=backend, batch=1, cycles=round(total), latency_ms=total / (spec.clock_ghz * 1e6), rows=tuple(rows),
        energy=parts.energy(spec), settings=_settings(found, spec) | {"terms of attention": terms(time),
        "throughput": f"{effective_tflops(work, time, spec):.3f} TFLOPS"}, calibration=CALIBRATION[spec.model],
        expected_error=EXPECTED[spec.model], assumed=("dram_efficiency", "energy.static_share"),
    )  # fmt: skip


def _settings(found: SequenceWorkload, spec: SpattenSpec) -> dict[str, str]:
    steps, layers, heads = found.lengths.shape
    rows = found.lengths.size
    return {
        "model": spec.model,
        "workload": f"{steps} steps, {layers} layers, {heads} heads; attention only",
        "K and V rows": f"{found.row_reduction:.2f}x fewer",
        "DRAM": f"{found.dram_reduction(False):.1f}x less than FP32 without pruning, "
        f"{found.dram_reduction(True):.1f}x with low bits",
        "queries that read low bits": f"{found.refetched} of {rows} ({100 * found.refetched / rows:.1f} %)",
    }
