"""Index the samples of a tar file in the layout of WebDataset, without unpacking it.

A sample is a group of members with the same path up to the first dot of the file name: `0001.jpg` and `0001.cls`.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitslim.data.files.folders import SUFFIXES
from vitslim.data.files.image_list import ImageLabels, LabelKind
from vitslim.data.files.names import printable
from vitslim.data.files.row_labels import LabelError, broken_entries, read_labels
from vitslim.errors import InputError

CLASS, JSON = "cls", "json"
"""Suffixes of the members that hold a label."""
LABEL_BYTES_MAX = 1 << 20
"""Size above which a member with a label is refused."""
HEADER_BYTES_MAX = 1 << 20
"""Size above which the header of a member is refused; names and extended headers are a few hundred bytes."""
METADATA = re.compile(r"__[^/]*__($|/)")
"""Members that WebDataset reserves."""
WITHOUT_IMAGE = "sample without an image"
SHARD_HINT = "write the shard again; `tar -tf FILE` lists its members"
LABEL_HINT = "a sample has one image, and its label in a member .cls or in the key `label` of a member .json"


KINDS: Mapping[LabelKind, str] = {"none": "has no label", "one": "has one label", "several": "has a list of labels"}


@dataclass
class TarIndex:
    """The samples of a tar file in order: one column for each property."""

    names: list[str] = field(default_factory=list)
    """Name of the member with the image."""
    starts: list[int] = field(default_factory=list)
    """Position of its first byte in the file."""
    sizes: list[int] = field(default_factory=list)
    """Number of its bytes."""
    labels: list[ImageLabels] = field(default_factory=list)
    kind: LabelKind = "none"
    """Kind of the labels of all samples."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of members that are not read, by their suffix."""

    def add(self, image: tarfile.TarInfo, kind: LabelKind, labels: ImageLabels) -> None:
        """Add a sample. Raises LabelError if it has another kind of labels than those before it."""
        self.kind = self.kind if self.names else kind
        if kind != self.kind:
            raise LabelError(f"{KINDS[kind]}, and '{printable(self.names[0])}' {KINDS[self.kind]}")
        for column, value in ((self.names, image.name), (self.starts, image.offset_data), (self.sizes, image.size)):
            column.append(value)  # type: ignore[arg-type]  # each has its own type
        self.labels.append(labels)


@dataclass
class _Sample:
    """The members of one sample, by their suffix."""

    key: str
    images: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    labels: dict[str, tarfile.TarInfo] = field(default_factory=dict)


class _HeaderReader(io.BufferedReader):
    """Reads a tar file whose headers may claim any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return `size` bytes. Raises tarfile.ReadError for more than a header can have."""
        if size is None or not 0 <= size <= HEADER_BYTES_MAX:
            raise tarfile.ReadError("a header is too large")
        return super().read(size)


def index_tar(path: Path, label_field: str | None) -> TarIndex:
    """Return the samples of a tar file.

    label_field: `cls`, or the key of the JSON members that holds the label; by default `cls`, else `label` or `labels`.
    Raises InputError for a file that is no tar file, or is truncated or damaged, and for samples without one image,
    with two labels, or with labels of another kind than the first, of which it gives the names.
    """
    index, broken = TarIndex(), dict[str, str]()
    try:
        with io.FileIO(path) as raw, _HeaderReader(raw) as file, io.FileIO(path) as contents:
            for sample in _grouped(path, file, index.skipped, broken):
                if not sample.images:
                    index.skipped[WITHOUT_IMAGE] += 1
                    continue
                try:
                    _add(index, sample, contents, label_field)
                except LabelError as error:
                    broken.setdefault(sample.key, str(error))
    except tarfile.TarError as error:
        raise InputError(f"{printable(path)} is not a tar file, or is damaged: {error}", SHARD_HINT) from error
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}", "check its permissions") from error
    if broken:
        named = {f"'{printable(key)}'": reason for key, reason in broken.items()}
        raise broken_entries(path, "sample", named, LABEL_HINT)
    return index


def _grouped(path: Path, file: _HeaderReader, skipped: Counter[str], broken: dict[str, str]) -> Iterator[_Sample]:
    """Yield the samples; counts other members, and collects the reasons why samples are broken."""
    current, seen = _Sample(""), set[str]()
    for member in _members(path, file):
        key, suffix = _key_and_suffix(member.name)
        if not suffix:
            skipped[key] += 1
            continue
        if key != current.key:
            if current.key:
                yield current
            if key in seen:
                broken[key] = "stands in two places"
            seen.add(key)
            current = _Sample(key)
        found = current.labels if suffix in (CLASS, JSON) else current.images if f".{suffix}" in SUFFIXES else None
        if found is None:
            skipped[f".{suffix}"] += 1
        elif not member.isreg() or member.issparse():
            broken[key] = f"has a member .{suffix} that is not a plain file"
        elif suffix in found:
            broken[key] = f"has two members .{suffix}"
        else:
            found[suffix] = member
    if current.key:
        yield current


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Return the key of a sample and the lower-case suffix of a member; without a suffix the kind of a skipped file."""
    base = name.rpartition("/")[2]
    stem, _, suffix = base.partition(".")
    if METADATA.match(name):
        return "metadata", ""
    if not stem or not suffix:
        return "hidden" if base.startswith(".") else "without a suffix", ""
    return name[: len(name) - len(suffix) - 1], suffix.lower()


def _members(path: Path, file: _HeaderReader) -> Iterator[tarfile.TarInfo]:
    """Yield the members but folders. Raises InputError if the archive has no end, tarfile.TarError if it is damaged."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        offset = -1
        while (member := tar.next()) is not None:
            if member.offset_data <= offset or member.size < 0:
                raise tarfile.ReadError("a header has a negative size")
            offset = member.offset_data
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
            if not member.isdir():
                yield member
        file.seek(tar.offset)
        end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise InputError(f"{printable(path)} is truncated: the end of the archive is missing", SHARD_HINT)
    if any(end):
        raise InputError(f"{printable(path)} is damaged at byte {tar.offset:,}", SHARD_HINT)


def _add(index: TarIndex, sample: _Sample, file: io.FileIO, label_field: str | None) -> None:
    """Add a sample with its labels to an index. Raises LabelError if it is broken."""
    if len(sample.images) > 1:
        raise LabelError(f"has {len(sample.images)} images: {', '.join(f'.{one}' for one in sample.images)}")
    (image,) = sample.images.values()
    index.add(image, *_labels({one: _content(file, member) for one, member in sample.labels.items()}, label_field))


def _content(file: io.FileIO, member: tarfile.TarInfo) -> bytes:
    if member.size > LABEL_BYTES_MAX:
        raise LabelError(f"has a label of {member.size:,} bytes")
    file.seek(member.offset_data)
    return file.read(member.size)


def _labels(contents: Mapping[str, bytes], label_field: str | None) -> tuple[LabelKind, ImageLabels]:
    """Return the labels of a sample, given the contents of its members .cls and .json."""
    found = []
    if CLASS in contents and label_field in (None, CLASS):
        found.append(read_labels({"label": contents[CLASS].decode("utf-8", "surrogateescape")}))
    if JSON in contents and label_field != CLASS:
        row = _json_row(contents[JSON])
        if label_field is not None:
            row = {_key_for(row[label_field]): row[label_field]} if label_field in row else {}
        if "label" in row or "labels" in row:
            found.append(read_labels(row))
    if len(found) > 1:
        raise LabelError("has two labels, in .cls and in .json; set data.label_field to `cls`, or to a key of the JSON")
    if not found and label_field is not None:
        raise LabelError(f"has no label '{label_field}'")
    return found[0] if found else ("none", ())


def _key_for(value: object) -> str:
    return "labels" if isinstance(value, list) else "label"


def _json_row(content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LabelError("has a member .json that is not JSON") from error
    return row if isinstance(row, dict) else {}
