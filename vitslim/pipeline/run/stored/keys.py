"""Content keys of stages: a finished stage is reused if all inputs of its result are unchanged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from vitslim.files import file_digest
from vitslim.pipeline.table_file import table_path
from vitslim.recipe.accelerators import Accelerator
from vitslim.recipe.backend_names import SIM, SPEC_SUFFIXES
from vitslim.recipe.hub_folder import hub_files
from vitslim.recipe.plugins import Plugin, plugins_of
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages.training import TeacherModel, TrainedWithTeacher

KEY_LENGTH = 12


def checkpoint_digest(path: Path) -> str:
    """Return the SHA-256 digest of a checkpoint; of a model folder, over the files that decide on the model."""
    if not path.is_dir():
        return file_digest(path)
    digests = "\n".join(f"{file.name} {file_digest(file)}" for file in hub_files(path))
    return hashlib.sha256(digests.encode()).hexdigest()


def package_digest() -> str:
    """Return the SHA-256 digest of the source code of vitslim."""
    root = Path(__file__).parents[3]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def plugin_digest(plugin: Plugin) -> str:
    """Return the SHA-256 digest of the source code of a plugin."""
    digests = "\n".join(f"{file.name} {file_digest(file)}" for file in plugin.source_files())
    return hashlib.sha256(digests.encode()).hexdigest()


def input_digests(recipe: Recipe, checkpoint: Path | None, data_digest: str) -> dict[str, str]:
    """Return the digest of everything that a run reads: code, data, checkpoints, tables, settings files and plugins."""
    digests = {"vitslim": package_digest(), "data": data_digest}
    digests |= {"checkpoint": checkpoint_digest(checkpoint)} if checkpoint else {}
    digests |= {str(path.absolute()): checkpoint_digest(path) for path in named_files(recipe)}
    return digests | {one.name: plugin_digest(one) for one in plugins_of(recipe.stages)}


def named_files(recipe: Recipe) -> list[Path]:
    """Return the checkpoints of teachers, the tables and the settings files that a recipe names."""
    read = [path for config in recipe.stages for path in (*_teacher_checkpoints(config), table_path(config)) if path]
    return [*read, *_settings_files(recipe)]


def _teacher_checkpoints(config: StageConfig) -> list[Path]:
    """Return the checkpoints of the teachers of a stage that exist; the others are refused when they are read."""
    teachers = (*config.teachers, config.label_teacher) if isinstance(config, TrainedWithTeacher) else ()
    named = [Path(one.checkpoint) for one in teachers if isinstance(one, TeacherModel) and one.checkpoint]
    return [path for path in named if path.exists()]


def _settings_files(recipe: Recipe) -> list[Path]:
    """Return the settings files of simulated backends."""
    targets = [one.removeprefix(SIM) if isinstance(one, str) else str(one.get("sim")) for one in recipe.report.backends]
    return [Path(target) for target in targets if target.endswith(SPEC_SUFFIXES)]


def dense_key(recipe: Recipe, checkpoint: Path | None, data_digest: str, versions: dict[str, str]) -> str:
    """Return the key of the dense model; each later key is derived from the key before it."""
    return _key(
        {
            "model": recipe.model.model_dump(mode="json", exclude={"checkpoint"}),
            "checkpoint": checkpoint_digest(checkpoint) if checkpoint else None,
            "data": data_digest,
            "classes": recipe.data.classes,
            "calibration": recipe.data.calibration,
            "eval_images": recipe.data.eval_images,
            "seed": recipe.seed,
            "package": package_digest(),
            "versions": versions,
        }
    )


def stage_key(previous: str, config: StageConfig, accelerator: Accelerator | None = None) -> str:
    """Return the key of a stage from the previous key, its kind, its config, and digests of the files that it names.

    accelerator: the approximations under which the stage trains; None without any.
    """
    table = table_path(config)
    return _key(
        {
            "previous": previous,
            "kind": config.kind,
            "config": config.model_dump(mode="json"),
            "accelerator": accelerator.model_dump(mode="json") if accelerator else None,
            "teachers": [checkpoint_digest(path) for path in _teacher_checkpoints(config)],
            "table": file_digest(table) if table and table.is_file() else None,
            "plugins": [(one.name, one.version, plugin_digest(one)) for one in plugins_of((config,))],
        }
    )


class RunKey(NamedTuple):
    """The name and the content key of a finished stage, by which the store finds it."""

    name: str
    key: str


def snapshot_key(stage: str, snapshot: str) -> str:
    """Return the key of a snapshot of a stage, from the stage's key and the snapshot's name."""
    return _key({"stage": stage, "snapshot": snapshot})


def _key(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
