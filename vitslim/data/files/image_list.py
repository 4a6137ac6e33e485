"""The images of one split with their labels, as a folder or a table lists them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from vitslim.data.files.names import printable

ImageLabels = tuple[str | int, ...]
"""Class names or class indices of one image."""
LabelKind = Literal["none", "one", "several"]


@dataclass(frozen=True)
class ImageList:
    """Images below `root` in a fixed order."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to the root, with `/`; bytes that are not UTF-8 as surrogates."""
    labels: tuple[ImageLabels, ...]
    """ImageLabels of each image: none, one, or several."""
    kind: LabelKind
    source: Path
    """The folder or table that lists the images."""
    skipped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Files that are not read: their kind, such as `.DS_Store`, to their number."""
    lines: tuple[int, ...] = ()
    """Line of each image in a table; empty for a folder."""
    digest: str = ""
    """SHA-256 over names and contents, in hexadecimal; empty before the files were read."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names that are the label of an image, sorted; empty for indices."""
        return tuple(sorted({name for labels in self.labels for name in labels if isinstance(name, str)}))

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
