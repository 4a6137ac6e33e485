"""A recipe without other files, and archives made of texts."""

from __future__ import annotations

import zipfile
from pathlib import Path
from zipfile import ZipFile

PLAIN = """\
# A comment that stays.
name: plain
model: {timm: deit_tiny_patch16_224}
data: {kind: digits}
stages: [export]
"""


def zipped(folder: Path, contents: dict[str, str], compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "hostile.zip"
    with ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path
