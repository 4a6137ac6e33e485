"""Pack a recipe, the recipes that it extends and the files that they name into one zip archive.

All files are at the top level of the archive; the recipe is `recipe.yaml`. Equal inputs give equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from vitslim.errors import InputError, UsageError
from vitslim.recipe.document.check import shown
from vitslim.recipe.document.grammar import EXTENDS
from vitslim.recipe.document.yaml12 import dump_yaml
from vitslim.recipe.hub_folder import hub_files
from vitslim.recipe.load import find_base, load_recipe, read_document
from vitslim.recipe.schema import HUB, Recipe
from vitslim.recipe.sources import RecipeFile, find_recipe
from vitslim.recipe.sources.cache_folder import LONGEST_NAME, MAX_BYTES
from vitslim.recipe.sources.document_paths import Content, NamedPath, change_paths
from vitslim.recipe.sources.zip_archive import MAIN

FIRST_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of every entry, so that equal files give equal archives."""
FILE_MODE = 0o100644 << 16


@dataclass(frozen=True)
class Packed:
    """A packed recipe."""

    recipe: Recipe
    names: tuple[str, ...]
    """Files of the archive."""
    left_out: tuple[str, ...]
    """Keys and files that are not in the archive: images, and weights unless they were asked for."""


def pack_recipe(name: str, out: Path | None = None, *, weights: bool = False) -> tuple[Packed, Path]:
    """Write a recipe with its files to an archive, and return its content and path. out: default `NAME.zip`.

    A recipe file is copied with its comments if no path in it changes, and rewritten without comments otherwise.
    Raises the errors of `load_recipe`; InputError if a file that the recipe names is missing, the contents exceed
    the limit of an archive, or `out` cannot be written; UsageError if the architecture is in a folder left out.
    """
    recipe = load_recipe(name, partial=True)
    if not weights and Path(recipe.model.checkpoint or "").is_dir() and recipe.model.checkpoint:
        hint = "add --weights, or set model.timm and model.kwargs in the recipe"
        raise UsageError("model.checkpoint is a folder, which also describes the model, and weights are left out", hint)
    box = _Box(weights)
    box.add_recipe(find_recipe(name), MAIN, ())
    path = out or Path(f"{recipe.name}.zip")
    _write(box.entries, path)
    return Packed(recipe, tuple(sorted(box.entries)), tuple(dict.fromkeys(box.left_out))), path


@dataclass
class _Box:
    """The entries of an archive while it is filled."""

    weights: bool
    entries: dict[str, bytes | Path] = field(default_factory=dict)
    """Content, or the file that holds it, by name."""
    left_out: list[str] = field(default_factory=list)
    _names: dict[Path, str] = field(default_factory=dict)

    def add_recipe(self, file: RecipeFile, name: str, seen: tuple[Path, ...]) -> None:
        """Add a recipe, its bases and their files."""
        written, document = read_document(file), read_document(file)
        self.entries[name] = b""  # the name is taken
        change_paths(document, lambda named: self._add_path(file, named))
        _remove_root(document)
        if EXTENDS in document:
            base = find_base(document[EXTENDS], file, seen)
            is_new = base.path.resolve() not in self._names
            document[EXTENDS] = self._name(base.path)
            if is_new:
                self.add_recipe(base, document[EXTENDS], (*seen, file.path.resolve()))
        self.entries[name] = file.path.read_bytes() if document == written else dump_yaml(document).encode()

    def _add_path(self, file: RecipeFile, named: NamedPath) -> str:
        """Add a file that a recipe names; return its name in the archive."""
        path = file.located(named.path)
        if named.content is Content.IMAGES or (named.content is Content.WEIGHTS and not self.weights):
            self.left_out.append(f"{named.where} ({named.path})")
            return _safe(path.resolve().name)
        name = self._name(path)
        if path.is_dir() and named.content is Content.WEIGHTS:
            self.entries |= {f"{name}/{one.name}": one for one in hub_files(path)}
        elif path.is_file():
            self.entries[name] = path
        else:
            hint = "correct the path" if named.content is Content.VALUES else "correct the path, or leave out --weights"
            raise InputError(f"{named.where}: there is no file '{path}'", hint)
        return name

    def _name(self, path: Path) -> str:
        """Return the name of a file in the archive, with a number if another file has its name already."""
        path = path.resolve()
        if path not in self._names:
            taken = {name.casefold() for name in (*self.entries, *self._names.values(), MAIN)}
            self._names[path] = next(name for name in _candidates(path) if name.casefold() not in taken)
        return self._names[path]


def _candidates(path: Path) -> Iterator[str]:
    name = Path(_safe(path.name))
    yield str(name)
    for number in count(2):
        yield f"{name.stem}-{number}{name.suffix}"


def _safe(name: str) -> str:
    """Return a name without characters that an archive does not allow."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return kept.strip(".")[-LONGEST_NAME // 2 :] or "file"


def _remove_root(document: dict[str, Any]) -> None:
    """Remove `data.root`, so that loading the archive asks for an image folder; a dataset of the hub stays."""
    data = document.get("data")
    if isinstance(data, dict) and not str(data.get("root", "")).startswith(HUB):
        data.pop("root", None)


def _write(entries: dict[str, bytes | Path], path: Path) -> None:
    sizes = (len(content) if isinstance(content, bytes) else content.stat().st_size for content in entries.values())
    if (total := sum(sizes)) > MAX_BYTES:
        hint = "leave out --weights"
        raise InputError(f"the files have {total / 1e9:.1f} GB, an archive at most {MAX_BYTES / 1e9:g} GB", hint)
    scratch = path.with_name(f".{path.name}.partial")
    try:
        with ZipFile(scratch, "w", ZIP_STORED) as archive:  # compressed bytes would depend on the version of zlib
            for name in sorted(entries):
                _add(archive, name, entries[name])
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"{shown(str(path))} cannot be written: {error.strerror}", "choose another --out") from error
    finally:
        scratch.unlink(missing_ok=True)


def _add(archive: ZipFile, name: str, content: bytes | Path) -> None:
    entry = ZipInfo(name, FIRST_TIME)
    entry.external_attr, entry.create_system = FILE_MODE, 3
    if isinstance(content, bytes):
        archive.writestr(entry, content)
        return
    entry.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target)
