"""Lists of GEMMs in CSV files: shapes and measured times."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from vitslim.errors import InputError, UsageError, closest

DTYPES = ("FP32", "FP16", "BF16", "INT8", "INT4")
COLUMNS = ("M", "N", "K", "dtype", "sparse", "count", "measured_us")
"""Columns of a written file. M, N and K are required, the others have defaults."""
PAIRED = (("dense_us", False), ("sparse24_us", True))
"""Columns of a table with dense and 2:4 times in one row; each time becomes a GEMM of its own."""
YES, NO = {"1", "true", "yes", "2:4"}, {"", "0", "false", "no", "dense"}
LENGTH_MAX = 2**31


@dataclass(frozen=True)
class Gemm:
    """`count` times C[M, N] = A[M, K] B[K, N] in one launch; with `sparse` the weights B are 2:4."""

    m: int
    n: int
    k: int
    dtype: str = "FP16"
    sparse: bool = False
    count: int = 1
    measured_us: float | None = None

    def measured(self, us: float) -> Gemm:
        """Return a copy with a measured time."""
        return replace(self, measured_us=us)


def read_gemms(path: Path) -> list[Gemm]:
    """Return the GEMMs of a CSV file with columns M, N, K and optionally dtype, sparse, count, measured_us.

    A file with the columns dense_us and sparse24_us gives two measured GEMMs for each row.
    Raises InputError for a file that cannot be read and for an invalid value, with its line; UsageError for a missing
    column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_rows(csv.DictReader(file), path))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", "give a CSV file with columns M,N,K") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a CSV file", "give a CSV file with columns M,N,K") from error


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[Gemm]:
    names = reader.fieldnames or ()
    for name in ("M", "N", "K"):
        if name not in names:
            raise UsageError(f"'{path}' has no column {name}", f"its columns are {', '.join(names) or 'none'}")
    paired = [(column, sparse) for column, sparse in PAIRED if column in names]
    found = False
    for row in reader:
        where = f"line {reader.line_num} of '{path}'"
        gemm = _gemm(row, where)
        found = True
        for column, sparse in paired:
            if row[column]:
                yield replace(gemm, sparse=sparse, measured_us=_time(row[column], column, where))
        if not paired:
            yield gemm
    if not found:
        raise InputError(f"'{path}' contains no GEMMs", "write one GEMM per line below the column names")


def _gemm(row: Mapping[str, str | None], where: str) -> Gemm:
    dtype = (row.get("dtype") or "FP16").strip().upper()
    if dtype not in DTYPES:
        raise InputError(f"{where}: unknown dtype '{dtype}'", closest(dtype, DTYPES))
    sparse = (row.get("sparse") or "").strip().lower()
    if sparse not in YES | NO:
        raise InputError(f"{where}: sparse is '{sparse}'", "allowed: 0, 1")
    return Gemm(
        m=_length(row["M"], "M", where),
        n=_length(row["N"], "N", where),
        k=_length(row["K"], "K", where),
        dtype=dtype,
        sparse=sparse in YES,
        count=_length(row.get("count") or "1", "count", where),
        measured_us=_time(row["measured_us"], "measured_us", where) if row.get("measured_us") else None,
    )


def _length(text: str | None, name: str, where: str) -> int:
    try:
        value = int(text or "")
    except ValueError:
        value = 0
    if not 1 <= value <= LENGTH_MAX:
        raise InputError(f"{where}: {name} is '{text}'", f"a length is an integer from 1 to {LENGTH_MAX}")
    return value


def _time(text: str | None, name: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"{where}: {name} is '{text}'", "a time is a positive number of microseconds")
    return value


def write_gemms(gemms: Sequence[Gemm], path: Path, predicted_us: Sequence[float] = ()) -> None:
    """Write GEMMs with their measured times and, if given, predicted times in another column.

    Raises InputError when the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "predicted_us"] if predicted_us else COLUMNS)
            for g, us in zip_longest(gemms, predicted_us):
                time = "" if g.measured_us is None else f"{g.measured_us:.3f}"
                more = [f"{us:.3f}"] if predicted_us else []
                writer.writerow([g.m, g.n, g.k, g.dtype, int(g.sparse), g.count, time, *more])
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror}", "choose another file") from error
