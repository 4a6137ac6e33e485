"""Recognize that nothing has changed since the run whose artifact is in a folder. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vitslim.backends.environment import device_name, environment
from vitslim.errors import InputError
from vitslim.files import MANIFEST_FILE, file_digest, write_atomically
from vitslim.pipeline.run.stored.artifact import Artifact, load_artifact
from vitslim.pipeline.run.stored.keys import checkpoint_digest, named_files, package_digest, plugin_digest
from vitslim.recipe import resolve_checkpoint
from vitslim.recipe.plugins import plugins_of
from vitslim.recipe.schema import CLASS_ORDERS, Data, Recipe

RUN_FILE = ".run.json"
"""Name of the file in the folder of stages that holds the digest of the last finished run."""
LINKED_LEVELS = 2
"""Levels below the root of a data set at which folders may be links: splits, and classes."""


def remember_run(inputs: str, out: Path, stages: Path) -> None:
    """Write the digest of the inputs of a finished run. Without it the next run checks every stage."""
    found = {"inputs": inputs, "artifact": file_digest(out / MANIFEST_FILE)}
    with suppress(InputError):
        write_atomically(stages / RUN_FILE, json.dumps(found).encode(), "")


def unchanged_artifact(inputs: str, out: Path, stages: Path) -> Artifact | None:
    """Return the artifact in a folder if a run would repeat the run that wrote it; else None.

    inputs: digest of those of the run, which must be the same; and the artifact must be as it was written. Its
    latencies are not measured again.
    """
    try:
        kept = json.loads((stages / RUN_FILE).read_text(encoding="utf-8"))
        if kept != {"inputs": inputs, "artifact": file_digest(out / MANIFEST_FILE)}:
            return None
        return load_artifact(out)
    except (OSError, ValueError, InputError):
        return None


def run_digest(recipe: Recipe) -> str | None:
    """Return a digest of all inputs of a run; None if one is missing, and for a recipe that writes several artifacts.

    These are recipe, code, versions, processor, checkpoints, tables and class lists, and names, sizes and times of
    modification of the images.
    """
    if any(config.snapshot_names for config in recipe.stages):
        return None
    try:
        return _inputs_digest(recipe)
    except (OSError, InputError):
        return None


def _inputs_digest(recipe: Recipe) -> str:
    checkpoint = resolve_checkpoint(recipe)
    files = [path for path in (checkpoint, _class_file(recipe.data), *named_files(recipe)) if path is not None]
    inputs = {
        "recipe": recipe.model_dump(mode="json"),
        "package": package_digest(),
        "plugins": [plugin_digest(one) for one in plugins_of(recipe.stages)],
        "versions": environment().versions,
        "device": device_name(),
        "files": [(str(path), checkpoint_digest(path)) for path in files],
        "images": list(_image_states(recipe.data)),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _class_file(data: Data) -> Path | None:
    """Return the file that lists the classes of a data set; None if no file does."""
    return Path(data.classes) if isinstance(data.classes, str) and data.classes not in CLASS_ORDERS else None


def _image_states(data: Data) -> Iterator[tuple[str, int, int]]:
    """Yield the path, the size and the time of modification of each file below the folders of a data set.

    The images of a table are below its folder. Links to the folders of splits and of classes are followed, as they are
    when images are listed. Raises OSError for a root that does not exist.
    """
    for root in (Path(one) for one in (data.root, *data.also_evaluate.values()) if one):
        yield _state(root)
        top = root.parent if root.is_file() else root
        for folder, folders, names in os.walk(top, followlinks=True):
            here = Path(folder)
            is_deep = len(here.relative_to(top).parts) >= LINKED_LEVELS
            folders[:] = sorted(name for name in folders if not (is_deep and (here / name).is_symlink()))
            yield from (_state(here / name) for name in sorted(names))


def _state(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return os.fsencode(path).hex(), found.st_size, found.st_mtime_ns
