"""Tar shards as WebDataset writes them, with random access to each image."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitslim.data.files.containers.tar_index import KINDS, LABEL_HINT, TarIndex, index_tar
from vitslim.data.files.file_states import path_state
from vitslim.data.files.image_list import EncodedImage, ImageLabels, ImageList, LabelKind
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
    as_indices = are_indices([labels for one in indices.values() for labels in one.labels], class_names or ())
    _check_kinds(base, indices)
    unread = Counter({f"split {UNUSED}": len(splits.pop(UNUSED))}) if UNUSED in splits else Counter[str]()
    found: dict[str, ImageList] = {}
    for split, own in splits.items():
        skipped = sum((indices[name].skipped for name in own), unread if not found else Counter[str]())
        found[split] = _image_list(root, base, {name: indices[name] for name in own}, as_indices, skipped)
    return found


def _image_list(
    root: Path, base: Path, indices: Mapping[str, TarIndex], as_indices: bool, skipped: Mapping[str, int]
) -> ImageList:
    files = tuple(f"{shard}/{name}" for shard, index in indices.items() for name in index.names)
    if not files:
        raise InputError(f"{printable(root)} has no images in {join_names(list(indices))}", LABEL_HINT)
    shard = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices.values()])
    starts, sizes = ([value for one in indices.values() for value in getattr(one, key)] for key in ("starts", "sizes"))
    rows = {name: row for row, name in enumerate(files)}
    container = Shards(base, tuple(indices), rows, np.column_stack([shard, starts, sizes]).astype(np.int64))
    labels = label_values([labels for index in indices.values() for labels in index.labels], as_indices)
    kind = next(index.kind for index in indices.values() if index.names)
    return ImageList(base, files, labels, kind, root, dict(skipped), container=container)


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


def _check_kinds(base: Path, indices: Mapping[str, TarIndex]) -> None:
    """Raise InputError if the samples of some shards have labels, or several, and others do not."""
    kinds: dict[LabelKind, str] = {}
    for shard, index in indices.items():
        if index.names:
            kinds.setdefault(index.kind, shard)
    if len(kinds) > 1:
        (first, shard), (other, another) = list(kinds.items())[:2]
        message = (
            f"{printable(base / shard)}: each sample {KINDS[first]}, and in {printable(another)} each {KINDS[other]}"
        )
        raise InputError(message, LABEL_HINT)


def _index(path: Path, label_field: str | None) -> TarIndex:
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
                columns = vars(found) | {"labels": [_flat(labels, found.kind) for labels in found.labels]}
                write_atomically(kept, json.dumps(columns).encode(), "")
    return found


def _flat(labels: ImageLabels, kind: LabelKind) -> object:
    return labels[0] if kind == "one" else labels


def _kept_index(path: Path) -> TarIndex | None:
    try:
        columns = json.loads(path.read_text(encoding="utf-8"))
        kind, flat = columns.pop("kind"), columns.pop("labels")
        shared = {label: (label,) for label in set(flat)} if kind == "one" else {}
        labels: list[ImageLabels] = [shared[label] if kind == "one" else tuple(label) for label in flat]
        found = TarIndex(**{**columns, "skipped": Counter(columns["skipped"])}, kind=kind, labels=labels)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if len({len(found.names), len(found.starts), len(found.sizes), len(labels)}) == 1 else None
