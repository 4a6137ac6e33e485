"""Checkpoints that cannot be read, would run code, or do not fit are refused with the reason."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.graph.trace.checkpoint import formats

NAME = "vit_tiny_patch16_224"
State = dict[str, torch.Tensor]


@pytest.fixture
def state(tiny_graph: ModelGraph) -> State:
    return {name: tensor.detach().clone() for name, tensor in tiny_graph.module.state_dict().items()}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code was run",)


def test_code_in_a_checkpoint_is_never_run(
    state: State, tiny_kwargs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path = saved({"state_dict": state, "extra": Harmful()}, tmp_path / "harmful.pth", **options)
        with pytest.raises(InputError, match="reading them would run code") as error:
            trace_timm(NAME, tiny_kwargs, path)
        assert "state_dict()" in error.value.hint
    assert capsys.readouterr().out == ""


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_unreadable_checkpoints_are_refused_with_the_reason(tiny_kwargs: dict[str, Any], tmp_path: Path) -> None:
    whole = saved({"a": torch.zeros(5000)}, tmp_path / "whole.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**6))
    np.savez(tmp_path / "objects.npz", a=np.array([Harmful()], dtype=object))
    np.savez(tmp_path / "open.npz", a=np.zeros(3))
    encrypted = bytearray((tmp_path / "open.npz").read_bytes())
    encrypted[encrypted.rfind(b"PK\1\2") + 8] |= 1
    cases = {
        tmp_path / "absent.safetensors": "does not exist",
        tmp_path: "is a folder without",
        write(tmp_path / "empty.safetensors", b""): "is empty",
        write(tmp_path / "noise.safetensors", bytes(range(200))): "not a valid safetensors file",
        write(tmp_path / "short.pth", whole[:5000]): "damaged",
        write(tmp_path / "short.bin", b"\x80\x02}"): "damaged|would run code",
        tmp_path / "bomb.pth": "not one that torch.save writes",
        tmp_path / "objects.npz": "not a valid NumPy archive",
        write(tmp_path / "encrypted.npz", encrypted): "not a valid NumPy archive: .*encrypted",
        saved([1, 2], tmp_path / "list.pth"): "no tensors by name",
    }
    for path, word in cases.items():
        with pytest.raises(InputError, match=word) as error:
            trace_timm(NAME, tiny_kwargs, path)
        assert error.value.hint
        assert error.value.exit_code == 5


def test_the_decompressed_size_of_an_archive_is_limited(
    tiny_kwargs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LARGEST_BYTES", 10**6)
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, weight=np.zeros(10**6, np.float32))
    assert path.stat().st_size < 10**5
    with pytest.raises(InputError, match=r"zeros.npz' has 0 GB, more than 0 GB"):
        trace_timm(NAME, tiny_kwargs, path)


def test_truncated_checkpoint(tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tiny_graph.module.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a valid safetensors file"):
        trace_timm(NAME, tiny_kwargs, path)


def test_checkpoint_of_another_architecture_names_parameters(tiny_kwargs: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(trace_timm(NAME, {**tiny_kwargs, "depth": 3}).module.state_dict(), path)
    with pytest.raises(InputError, match=r"unexpected: blocks\.2.* and 9 more"):
        trace_timm(NAME, tiny_kwargs, path)
    with pytest.raises(InputError, match=r"missing: blocks\.3"):
        trace_timm(NAME, {**tiny_kwargs, "depth": 4}, path)
    with pytest.raises(InputError, match=r"wrong shape: cls_token is 1x1x64 instead of 1x1x96"):
        trace_timm(NAME, {**tiny_kwargs, "depth": 3, "embed_dim": 96}, path)


def test_a_checkpoint_with_another_number_of_classes_is_refused(
    state: State, tiny_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"has 10 classes, model\.kwargs\.num_classes is 7") as error:
        trace_timm(NAME, {**tiny_kwargs, "num_classes": 7}, tmp_path / "model.safetensors")
    assert error.value.hint == "remove model.kwargs.num_classes, or set it to 10"


def test_a_model_that_pools_otherwise_gets_the_key_as_a_hint(
    state: State, tiny_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="missing: fc_norm") as error:
        trace_timm(NAME, {**tiny_kwargs, "global_pool": "avg"}, path)
    assert "set model.kwargs.global_pool to token" in error.value.hint
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head")}
    with pytest.raises(InputError, match="missing: head") as error:
        trace_timm(NAME, tiny_kwargs, saved(headless, path))
    assert "has no classifier" in error.value.hint
