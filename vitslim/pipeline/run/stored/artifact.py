"""The artifact of a run: a directory that is written atomically."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitslim.errors import InputError, UsageError
from vitslim.files import MANIFEST_FILE, MODEL_FILE, LayoutFiles, file_digest, is_inside, replace_atomically
from vitslim.pipeline.run_folders import REPORT_FILE, read_report
from vitslim.report import render_html, render_json
from vitslim.results import Report
from vitslim.workload import read_metadata

LOCK_FILE = "recipe.lock.yaml"
COPIED = ("weights.safetensors", "graph.json")


@dataclass(frozen=True)
class Artifact:
    """A finished run on disk."""

    folder: Path
    report: Report
    manifest: dict[str, Any]

    @property
    def onnx(self) -> Path:
        """The compressed model."""
        return self.folder / self.report.model_file


def check_replaceable(folder: Path) -> None:
    """Raise UsageError unless a path is missing, an empty folder, or the artifact of an earlier run."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
        raise UsageError(f"'{folder}' is not empty and not the result of an earlier run", "choose another --out folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"expected a folder, got the file '{folder}'", "choose another --out folder")


def write_artifact(
    folder: Path, stage_folder: Path, lock: str, report: Report, layout: LayoutFiles | None = None
) -> Artifact:
    """Write the artifact to a scratch directory, then move it to `folder`.

    stage_folder: folder of the last stage, whose model and weights are copied. lock: text of the lock file. layout: the
    place of the model, and further files; None for the plain layout.
    """
    layout = layout or LayoutFiles()
    with replace_atomically(folder) as scratch:
        for name in COPIED:
            shutil.copyfile(stage_folder / name, scratch / name)
        for name, text in {LOCK_FILE: lock, **layout.texts}.items():
            _prepared(scratch / name).write_text(text, encoding="utf-8")
        shutil.copyfile(stage_folder / MODEL_FILE, _prepared(scratch / layout.model))
        digests = {name: file_digest(scratch / name) for name in (layout.model, *COPIED, LOCK_FILE, *layout.texts)}
        warnings = (*report.warnings, *layout.notes)
        report = report.model_copy(update={"files": digests, "model_file": layout.model, "warnings": warnings})
        (scratch / REPORT_FILE).write_text(render_json(report), encoding="utf-8")
        (scratch / "report.html").write_text(render_html(report), encoding="utf-8")
        manifest = _manifest(scratch, report)
        (scratch / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Artifact(folder, report, manifest)


def load_artifact(folder: Path) -> Artifact:
    """Return an artifact after checking every file against the manifest.

    Raises InputError when a file is missing or was changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        expected = dict(manifest["files"])
    except FileNotFoundError as error:
        raise InputError(
            f"'{folder}' is not a finished run: it has no {MANIFEST_FILE}", "give the --out folder of a finished run"
        ) from error
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InputError(f"'{folder / MANIFEST_FILE}' is corrupt", "run the recipe again") from error
    for name, digest in expected.items():
        if not is_inside(name):
            raise InputError(
                f"'{folder / MANIFEST_FILE}' names a file that cannot be in its folder", "run the recipe again"
            )
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise InputError(f"'{folder / name}' is missing or was changed after the run", "run the recipe again")
    return Artifact(folder, read_report(folder / REPORT_FILE), manifest)


def _prepared(path: Path) -> Path:
    """Return a path after creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _manifest(folder: Path, report: Report) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "schema_version": 1,
        "name": report.name,
        "model": report.model,
        "created": report.created,
        "model_file": report.model_file,
        "annotations": read_metadata(folder / report.model_file),
        "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
    }
