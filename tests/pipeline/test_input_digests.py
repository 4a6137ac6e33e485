"""Digests of everything that a run reads, by absolute path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitslim.pipeline.run.stored.keys import checkpoint_digest, file_digest, input_digests
from vitslim.recipe import validate


def test_teachers_and_settings_files_have_digests(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "teacher.safetensors").write_bytes(b"teacher")
    (tmp_path / "array.yaml").write_text("array: [32, 32]\n")
    (tmp_path / "model.safetensors").write_bytes(b"model")
    monkeypatch.chdir(tmp_path)
    recipe = validate(
        {
            "name": "digests",
            "model": {"timm": "vit_tiny_patch16_224"},
            "data": {"kind": "digits"},
            "stages": [
                {"distill": {"teacher": {"timm": "vit_tiny_patch16_224", "checkpoint": "teacher.safetensors"}}},
                "export",
            ],
            "report": {"backends": ["sim:array.yaml", {"sim": "systolic"}]},
        }
    )
    found = input_digests(recipe, Path("model.safetensors"), "0" * 64)
    assert found.pop("vitslim")
    assert found == {
        "data": "0" * 64,
        "checkpoint": checkpoint_digest(tmp_path / "model.safetensors"),
        str(tmp_path / "teacher.safetensors"): checkpoint_digest(tmp_path / "teacher.safetensors"),
        str(tmp_path / "array.yaml"): file_digest(tmp_path / "array.yaml"),
    }
