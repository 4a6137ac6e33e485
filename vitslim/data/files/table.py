"""Read a table that lists images: CSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitslim.data.files.image_list import ImageLabels, ImageList, LabelKind
from vitslim.data.files.names import printable
from vitslim.data.files.row_labels import LabelError, are_indices, broken_entries, label_values, read_labels
from vitslim.data.files.splits import SPLITS, UNUSED
from vitslim.errors import InputError

SUFFIXES = (".csv", ".jsonl", ".ndjson")
LAYOUT_HINT = "a table has the columns path,label[,split], or a JSON object with these keys in each line"


class _Row(NamedTuple):
    """One image."""

    split: str
    kind: LabelKind
    labels: ImageLabels
    file: str
    line: int


def read_table(path: Path, class_names: Sequence[str] | None) -> dict[str, ImageList]:
    """Return the images of a table by split: `train`, and `val` if the column `split` has it.

    `class_names` are those of `data.classes`. A label is an index if all labels are digits that are not in
    `class_names`. Raises InputError for a file that is no table, and for broken rows, of which it gives the lines: rows
    without a path or a label, of unknown splits, listed twice, of files that are missing or outside of the folder.
    """
    root, skipped = path.parent.resolve(), Counter[str]()
    rows = _checked_rows(path, root, skipped)
    if not rows:
        raise InputError(f"{printable(path)} lists no images", LAYOUT_HINT)
    as_indices = are_indices([row.labels for row in rows], class_names or ())
    found = {}
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        found[split] = ImageList(
            root,
            tuple(row.file for row in own),
            label_values([row.labels for row in own], as_indices),
            own[0].kind,
            path,
            skipped if split == rows[0].split else {},
            tuple(row.line for row in own),
        )
    return found


def _checked_rows(path: Path, root: Path, skipped: Counter[str]) -> list[_Row]:
    """Return the rows of the splits that are read. Raises InputError with the lines of all broken rows."""
    rows: list[_Row] = []
    broken: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, values in _rows(path):
        try:
            if isinstance(values, LabelError):
                raise values
            row = _Row(_split(values), *read_labels(values), _file(root, values.get("path")), line)
            if rows and row.kind != rows[0].kind:
                raise LabelError(f"has other columns than line {rows[0].line}")
            if (earlier := lines.setdefault(row.file, line)) != line:
                raise LabelError(f"lists the image of line {earlier} again")
        except LabelError as error:
            broken[f"line {line}"] = str(error)
            continue
        if row.split == UNUSED:
            skipped[f"split {UNUSED}"] += 1
        else:
            rows.append(row)
    if broken:
        raise broken_entries(path, "row", broken, LAYOUT_HINT)
    return rows


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | LabelError]]:
    """Yield each row with its line, or the error of its syntax. Bytes that are not UTF-8 become surrogates."""
    if path.suffix.lower() not in SUFFIXES:
        message = f"{printable(path)} is neither a folder nor a table"
        raise InputError(message, f"a table ends in {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _csv_rows(path, file) if path.suffix.lower() == ".csv" else _json_rows(file)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}", "check its permissions") from error


def _csv_rows(path: Path, file: Any) -> Iterator[tuple[int, Mapping[str, Any] | LabelError]]:
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if "path" not in header or len(set(header)) < len(header):
            shown = printable(",".join(header))[:80]
            message = f"the first line of {printable(path)} must name the columns, among them path; got '{shown}'"
            raise InputError(message, LAYOUT_HINT)
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, dict(zip(header, row, strict=True))
            elif row:
                fields = f"{len(row)} {'field' if len(row) == 1 else 'fields'}"
                yield reader.line_num, LabelError(f"has {fields}, the header has {len(header)}")
    except csv.Error as error:
        yield max(reader.line_num, 1), LabelError(f"is not CSV: {error}")


def _json_rows(file: Any) -> Iterator[tuple[int, Mapping[str, Any] | LabelError]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            yield line, LabelError("is not JSON")
            continue
        yield line, row if isinstance(row, dict) else LabelError("is not a JSON object")


def _split(row: Mapping[str, Any]) -> str:
    value = row.get("split", "train")
    split = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise LabelError("has an unknown split; allowed: train, val, test")
    return split


def _file(root: Path, value: object) -> str:
    """Return the path of an image relative to the folder of its table."""
    if not isinstance(value, str) or not value.strip():
        raise LabelError("has no path")
    try:
        path = (root / value.strip()).resolve()
        if not path.is_relative_to(root):
            raise LabelError("has a path outside of the folder of the table")
        if not path.is_file():
            raise LabelError("names a file that does not exist")
    except (OSError, ValueError) as error:
        if isinstance(error, LabelError):
            raise
        raise LabelError("has a path that is not valid") from error
    return path.relative_to(root).as_posix()
