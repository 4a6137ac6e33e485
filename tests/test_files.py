"""Files and folders are written atomically: Ctrl-C at any moment leaves no partial file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import InputError
from vitslim.files import replace_atomically, write_atomically


def interrupted_after(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does its work and raises KeyboardInterrupt before it returns."""

    def wrapped(*arguments: Any, **named: Any) -> None:
        call(*arguments, **named)
        raise KeyboardInterrupt

    return wrapped


def test_a_folder_replaces_the_previous_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "small"
    for text in ("first", "second"):
        with replace_atomically(target) as scratch:
            (scratch / text).write_text(text)
            assert scratch.parent == target.parent  # a rename must not cross file systems
        assert [path.name for path in target.iterdir()] == [text]
        assert list(target.parent.iterdir()) == [target]


def test_a_failed_folder_leaves_the_previous_one(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "small") as scratch:
        (scratch / "first").touch()
    with pytest.raises(KeyboardInterrupt), replace_atomically(tmp_path / "small") as scratch:
        (scratch / "second").touch()
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["small", "small/first"]


def test_ctrl_c_right_after_the_scratch_folder_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", interrupted_after(Path.mkdir))
    with pytest.raises(KeyboardInterrupt), replace_atomically(tmp_path / "small"):
        pytest.fail("the block must not start")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interrupted", [1, 2])
def test_ctrl_c_between_the_renames_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    """The first rename puts the old folder aside, the second one puts the new one in its place."""
    target, renames = tmp_path / "small", []
    with replace_atomically(target) as scratch:
        (scratch / "first").touch()
    rename = Path.rename

    def counted(path: Path, new: Path) -> None:
        renames.append(new)
        (interrupted_after(rename) if len(renames) == interrupted else rename)(path, new)

    monkeypatch.setattr(Path, "rename", counted)
    with pytest.raises(KeyboardInterrupt), replace_atomically(target) as scratch:
        (scratch / "second").touch()
    assert list(tmp_path.iterdir()) == [target]
    assert [path.name for path in target.iterdir()] == [["first", "second"][interrupted - 1]]


def test_ctrl_c_while_a_file_is_written_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", interrupted_after(os.fsync))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after", "free some space")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("model.onnx", b"before")]


def test_a_file_that_cannot_be_written_is_an_error_with_the_given_hint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written") as error:
        write_atomically(tmp_path / "missing" / "model.onnx", b"", "make the folder")
    assert error.value.hint == "make the folder"
