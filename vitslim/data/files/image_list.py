"""The images of one split with their labels, as a folder, a table, shards or a dataset list them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal, Protocol

from vitslim.data.files.names import printable

ImageLabels = tuple[str | int, ...]
"""Class names or class indices of one image."""
LabelKind = Literal["none", "one", "several"]


class EncodedImage(Protocol):
    """The bytes of one image: a path, or a part of a container. Its text is its name in messages."""

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Open the bytes for reading; safe to call from several threads. Raises OSError if they cannot be read."""
        ...


class Container(Protocol):
    """Files that hold many images each: tar files, or the tables of a dataset."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files on disk; the images are unchanged while these files are."""
        ...

    def file(self, name: str) -> EncodedImage:
        """Return the image of a name in `ImageList.files`."""
        ...


@dataclass(frozen=True)
class ImageList:
    """Images below `root` in a fixed order."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to the root, with `/`; bytes that are not UTF-8 as surrogates. In a container: its own names."""
    labels: tuple[ImageLabels, ...]
    """ImageLabels of each image: none, one, or several."""
    kind: LabelKind
    source: Path
    """The folder or table that lists the images, or the folder of their container."""
    skipped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Files that are not read: their kind, such as `.DS_Store`, to their number."""
    lines: tuple[int, ...] = ()
    """Line of each image in a table; empty for a folder."""
    digest: str = ""
    """SHA-256 over names and contents, in hexadecimal; empty before the files were read."""
    container: Container | None = field(default=None, repr=False)
    """The container of the images; None for files of their own."""
    class_order: tuple[str, ...] = ()
    """Names of the classes in the order of the class indices, where the data set states it."""

    @property
    def is_folder(self) -> bool:
        """Whether a folder was searched for the images, rather than that something lists them."""
        return not self.lines and self.container is None

    def file(self, position: int) -> EncodedImage:
        """Return the image at a position."""
        name = self.files[position]
        return self.root / name if self.container is None else self.container.file(name)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names that are the label of an image, sorted; empty for indices."""
        return tuple(sorted({name for labels in set(self.labels) for name in labels if isinstance(name, str)}))

    @property
    def shown(self) -> str:
        """The folder or table that lists the images, for messages."""
        return printable(self.source)

    def subset(self, positions: Sequence[int]) -> ImageList:
        """Return the images at these positions, without a digest."""
        return replace(
            self,
            files=tuple(self.files[position] for position in positions),
            labels=tuple(self.labels[position] for position in positions),
            lines=tuple(self.lines[position] for position in positions) if self.lines else (),
            digest="",
        )


def list_digest(files: Sequence[str], contents: Sequence[str]) -> str:
    """Return the SHA-256 digest of files from their names and the digests of their contents, in hexadecimal."""
    digest = hashlib.sha256()
    for name, content in zip(files, contents, strict=True):
        digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\0")
    return digest.hexdigest()
