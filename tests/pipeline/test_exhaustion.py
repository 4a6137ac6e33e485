"""A full disk, a read-only folder and too little memory end a run with one sentence, and it can be resumed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from vitslim.errors import InputError, StageError
from vitslim.pipeline.run.exhaustion import explained


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system", "a.onnx"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_file_that_cannot_be_written_is_explained(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(InputError, match=r"cannot be written: (No space|Read-only)") as caught, explained(tmp_path):
        raise error
    assert caught.value.exit_code == 5
    assert "finished stages are kept" in caught.value.hint


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_exhausted_memory_is_explained(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(StageError, match="memory of this machine is exhausted") as caught, explained(tmp_path):
        raise error
    assert "train.batch" in caught.value.hint


def test_a_real_allocation_that_fails_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="exhausted"), explained(tmp_path):
        torch.empty(2**60)


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, os.strerror(errno.ENOENT)), RuntimeError("shape mismatch")])
def test_other_errors_are_not_explained_away(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(tmp_path):
        raise error
    assert caught.value is error
