"""Tar shards as WebDataset writes them, with random access to each image."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitslim.data.files.containers.tar_index import LABEL_HINT, TarSample, index_tar
from vitslim.data.files.file_states import path_state
from vitslim.data.files.image_list import EncodedImage, ImageList
from vitslim.data.files.names import join_names, printable
from vitslim.data.files.row_labels import are_indices, label_values
from vitslim.data.files.splits import SPLITS, UNUSED
from vitslim.errors import InputError
from vitslim.files import user_cache, write_atomically
from vitslim.progress import Progress

SUFFIX = ".tar"
COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4")
IMAGE_BYTES_MAX = 1 << 30
"""Size above which an image in a container is refused, because it is read into memory."""
FORMAT = 1
"""Version of the stored index."""
LAYOUT_HINT = (
    "a folder of shards holds train/*.tar and val/*.tar, or files whose names say the split, such as "
    "NAME-train-000000.tar and NAME-val-000000.tar"
)
_WORDS = re.compile(r"[^a-z]+")


class ShardImage(NamedTuple):
    """An image in a tar file."""

    shard: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    @property
    def suffix(self) -> str:
        """Suffix of the member, with the dot."""
        return Path(self.name).suffix

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Return the bytes of the image. Raises OSError if they are too many, or the shard is shorter."""
        if self.size > IMAGE_BYTES_MAX:
            raise OSError(f"{self.size:,} bytes, at most {IMAGE_BYTES_MAX:,} are read")
        with self.shard.open(mode, buffering=0) as file:
            file.seek(self.start)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("the shard is truncated")
        return io.BytesIO(content)


@dataclass(frozen=True)
class Shards:
    """The images of tar files by name: that of the shard, relative to the root, and that of the member."""

    root: Path
    shards: tuple[str, ...]
    """Paths relative to the root."""
    rows: dict[str, int] = field(repr=False)
    """Name of each image to its row."""
    places: NDArray[np.int64] = field(repr=False)
    """(n, 3): index of the shard, first byte and number of bytes of each image."""

    @property
    def paths(self) -> list[Path]:
        """The tar files."""
        return [self.root / shard for shard in self.shards]

    def file(self, name: str) -> EncodedImage:
        """Return the image of a name."""
        shard, start, size = self.places[self.rows[name]].tolist()
        own = self.shards[shard]
        return ShardImage(self.root / own, name[len(own) + 1 :], start, size)


def list_shards(
    root: Path, class_names: Sequence[str] | None, label_field: str | None, progress: Progress
) -> dict[str, ImageList]:
    """Return the images of a tar file or of a folder of them by split, in the order of the names of the shards.

    The splits are the folders train/ and val/, else the words `train` and `val` in the names of the files; shards of
    `test` are not read. Without any of these, all shards are `train`. Labels are class names, or indices as in tables.
    label_field: as in `index_tar`, whose InputErrors it raises; also for a folder without shards, compressed shards,
    and samples with and without labels.
    """
    splits = _shards_by_split(root)
    base = root if root.is_dir() else root.parent
    names = [name for found in splits.values() for name in found if found is not splits.get(UNUSED)]
    indices = {name: _index(base / name, label_field) for name in progress.track(names, "indexing the shards")}
    as_indices = are_indices([one.labels for samples, _ in indices.values() for one in samples], class_names or ())
    _check_kinds(base, indices)
    unread = Counter({f"split {UNUSED}": len(splits.pop(UNUSED))}) if UNUSED in splits else Counter[str]()
    found: dict[str, ImageList] = {}
    for split, own in splits.items():
        skipped = sum((indices[name][1] for name in own), unread if not found else Counter[str]())
        found[split] = _image_list(root, base, own, [indices[name][0] for name in own], as_indices, skipped)
    return found


def _image_list(
    root: Path, base: Path, shards: list[str], indexed: list[list[TarSample]], as_indices: bool, skipped: Counter[str]
) -> ImageList:
    files = tuple(f"{shard}/{one.name}" for shard, samples in zip(shards, indexed, strict=True) for one in samples)
    places = [(shard, one.start, one.size) for shard, samples in enumerate(indexed) for one in samples]
    samples = [one for found in indexed for one in found]
    if not samples:
        raise InputError(f"{printable(root)} has no images in {join_names(shards)}", LABEL_HINT)
    rows = {name: row for row, name in enumerate(files)}
    container = Shards(base, tuple(shards), rows, np.array(places, dtype=np.int64))
    labels = label_values([one.labels for one in samples], as_indices)
    return ImageList(base, files, labels, samples[0].kind, root, dict(skipped), container=container)


def _shards_by_split(root: Path) -> dict[str, list[str]]:
    """Return the shards by split, by their paths relative to the root. Raises InputError without any."""
    if root.is_file():
        return {"train": [root.name]} if root.suffix == SUFFIX else _refuse([root.name], root)
    if not root.is_dir():
        raise InputError(f"{printable(root)} does not exist", LAYOUT_HINT)
    folders = [name for name in SPLITS if (root / name).is_dir()]
    paths = [path.relative_to(root) for folder in folders or ["."] for path in (root / folder).iterdir()]
    names = sorted(path.as_posix() for path in paths if path.suffix == SUFFIX and not path.name.startswith("."))
    if not names:
        return _refuse([path.name for path in paths], root)
    words = {name: name.split("/")[:1] if folders else _WORDS.split(Path(name).stem.lower()) for name in names}
    splits = {name: {SPLITS[word] for word in words[name] if word in SPLITS} for name in names}
    unclear = [name for name in names if len(splits[name]) != 1]
    if unclear and any(splits.values()):
        message = f"{printable(root)} has shards whose names do not say the split, or two: {join_names(unclear)}"
        raise InputError(message, LAYOUT_HINT)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(next(iter(splits[name]), "train"), []).append(name)
    return dict(sorted(found.items()))


def _refuse(names: Sequence[str], root: Path) -> dict[str, list[str]]:
    compressed = [name for name in names if name.endswith(COMPRESSED)]
    if compressed:
        message = f"{printable(root)} has compressed shards, whose images cannot be found: {join_names(compressed)}"
        raise InputError(message, "decompress them to .tar; images are compressed already")
    raise InputError(f"{printable(root)} has no shards (.tar)", LAYOUT_HINT)


def _check_kinds(base: Path, indices: dict[str, tuple[list[TarSample], Counter[str]]]) -> None:
    """Raise InputError if some samples have labels, or several, and others do not."""
    first: TarSample | None = None
    for shard, (samples, _) in indices.items():
        for one in samples:
            first = first or one
            if one.kind != first.kind:
                said = {"none": "has no label", "one": "has one label", "several": "has a list of labels"}
                message = (
                    f"{printable(base / shard)}: '{printable(one.name)}' {said[one.kind]}, and "
                    f"'{printable(first.name)}' {said[first.kind]}"
                )
                raise InputError(message, LABEL_HINT)


def _index(path: Path, label_field: str | None) -> tuple[list[TarSample], Counter[str]]:
    """Return the result of `index_tar`, which is kept in the user's cache while the file does not change."""
    state = path_state(path)
    key = hashlib.sha256(repr((FORMAT, state, label_field)).encode()).hexdigest()[:32] if state else None
    kept = user_cache("shards") / f"{key}.json"
    found = _kept_index(kept) if key else None
    if found is None:
        found = index_tar(path, label_field)
        if key:
            # Without the index, the next run makes it again.
            with contextlib.suppress(OSError, InputError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                columns = list(zip(*found[0], strict=True)) or [()] * len(TarSample._fields)
                write_atomically(kept, json.dumps([columns, dict(found[1])]).encode(), "")
    return found


def _kept_index(path: Path) -> tuple[list[TarSample], Counter[str]] | None:
    try:
        (names, starts, sizes, kinds, labels), skipped = json.loads(path.read_text(encoding="utf-8"))
        rows = zip(names, starts, sizes, kinds, map(tuple, labels), strict=True)
        return [TarSample(*row) for row in rows], Counter(skipped)
    except (OSError, ValueError, TypeError):
        return None
