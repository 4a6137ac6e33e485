"""`reduce_range: auto` is resolved once, and the value is in the key, the lock file, the ONNX file and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import vitslim
from vitslim.pipeline.run.resolve import resolve_reduce_range
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.pipeline.run.stored.keys import stage_key
from vitslim.recipe import validate
from vitslim.report.html import render_html


def recipe(backends: tuple[str, ...] = ("onnxruntime:cpu",), **keys: Any) -> Any:
    return validate(
        {
            "name": "small",
            "model": {"timm": "vit_tiny_patch16_224"},
            "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
            "stages": [{"quantize": {"method": "ptq", "smooth": False, "rounding": "nearest", **keys}}, {"export": {}}],
            "report": {"backends": list(backends), "seconds": 0.01},
        }
    )


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.pipeline.run.resolve.cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("vitslim.pipeline.run.resolve.platform.machine", lambda: "x86_64")


@pytest.mark.usefixtures("avx2")
@pytest.mark.parametrize(
    ("backends", "keys", "value", "reason"),
    [
        (("onnxruntime:cpu",), {}, True, "AVX2 has no VNNI"),
        (("sim:a100",), {}, False, "no measured backend"),
        (("onnxruntime:cpu",), {"reduce_range": False}, False, "set in the recipe"),
        (("sim:a100",), {"reduce_range": True}, True, "set in the recipe"),
        (("onnxruntime:cpu",), {"bits": 4, "group_size": 16}, True, "AVX2"),
        (("onnxruntime:cpu",), {"bits": 4}, "auto", None),
        (("onnxruntime:cpu",), {"activations": "float", "smooth": True}, "auto", None),
    ],
)
def test_auto_becomes_a_value_where_weights_depend_on_it(
    backends: tuple[str, ...], keys: dict[str, Any], value: bool | str, reason: str | None
) -> None:
    before = recipe(backends, **keys)
    after, notes = resolve_reduce_range(before)
    assert after.stages[0].reduce_range == value
    assert resolve_reduce_range(after)[0] == after
    assert (stage_key("", after.stages[0]) == stage_key("", before.stages[0])) == (
        value == before.stages[0].reduce_range
    )
    assert set(notes) == ({0} if reason else set())
    if reason:
        assert notes[0].result == f"reduce_range = {str(value).lower()}" and reason in notes[0].reason


@pytest.mark.usefixtures("avx2", "one_export")
def test_the_value_is_everywhere(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    whole = recipe()
    whole = whole.model_copy(update={"model": whole.model.model_copy(update={"kwargs": tiny_kwargs})})
    artifact = run_recipe(whole, tmp_path / "out")
    locked = vitslim.load_recipe(artifact.folder / "recipe.lock.yaml")
    assert locked.stages[0].reduce_range is True  # type: ignore[attr-defined]
    noted = {one.key: one.value for one in onnx.load(artifact.onnx).metadata_props}
    assert json.loads(noted["vitslim.reduce_range"]) is True
    note = artifact.report.stages[1].changes[0]
    assert (note.result, "AVX2 has no VNNI" in note.reason) == ("reduce_range = true", True)
    assert "reduce_range = true" in render_html(artifact.report)
