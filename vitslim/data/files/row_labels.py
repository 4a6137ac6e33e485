"""Labels of images in the rows of tables, the samples of shards and the rows of datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitslim.data.files.image_list import ImageLabels, LabelKind
from vitslim.data.files.names import NAMES_MAX, printable
from vitslim.errors import InputError

SEPARATOR = ";"
"""Between the names of the column `labels`."""
INDEX = re.compile(r"[0-9]{1,9}")


class LabelError(ValueError):
    """An image cannot be used, for the reason of the message, which follows its name."""


def read_labels(row: Mapping[str, Any]) -> tuple[LabelKind, ImageLabels]:
    """Return the kind of the labels of a row, and the labels: those of its key `label` or `labels`.

    Raises LabelError for a row with both, and for a value that is no label.
    """
    if "label" in row and "labels" in row:
        raise LabelError("has `label` and `labels`")
    if "label" in row:
        (label,) = _names([row["label"]])
        return "one", (label,)
    if "labels" not in row:
        return "none", ()
    value = row["labels"]
    listed = [one for one in value.split(SEPARATOR) if one.strip()] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise LabelError("has `labels` that are neither text nor a list")
    names = _names(listed)
    if len(set(names)) < len(names):
        raise LabelError("has a label twice")
    return "several", names


def _names(values: Sequence[object]) -> ImageLabels:
    found: list[str | int] = []
    for value in values:
        if isinstance(value, str) and value.strip():
            found.append(_label_text(value))
        elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            found.append(value)
        else:
            raise LabelError(
                "has no label" if value in ("", None) else "has a label that is neither a name nor an index"
            )
    return tuple(found)


def _label_text(value: str) -> str:
    """Return a class name of a table as text."""
    try:
        return printable(value.strip())
    except UnicodeEncodeError as error:
        raise LabelError("has a label that is no text") from error


def are_indices(rows: Sequence[ImageLabels], names: Sequence[str]) -> bool:
    """Return whether all labels are digits, and not all of them are class names."""
    labels = {label for row in rows for label in row}
    digits = all(isinstance(label, int) or INDEX.fullmatch(label) for label in labels)
    return digits and not (names and {str(label) for label in labels} <= set(names))


def label_values(rows: Sequence[ImageLabels], as_indices: bool) -> tuple[ImageLabels, ...]:
    """Return labels as class indices or as class names; equal labels share one tuple."""
    values: dict[ImageLabels, ImageLabels] = {}
    for labels in rows:
        if labels not in values:
            values[labels] = tuple(int(label) if as_indices else str(label) for label in labels)
    return tuple(values[labels] for labels in rows)


def broken_entries(shown: str | Path, kind: str, broken: Mapping[str, str], hint: str) -> InputError:
    """Return the error for entries that cannot be used, by their names with their reasons; kind: such as `row`."""
    listed = "; ".join(f"{name} {reason}" for name, reason in list(broken.items())[:NAMES_MAX])
    more = f"; and {len(broken) - NAMES_MAX} more" if len(broken) > NAMES_MAX else ""
    count = f"1 broken {kind}" if len(broken) == 1 else f"{len(broken)} broken {kind}s"
    return InputError(f"{printable(shown)} has {count}: {listed}{more}", hint)
