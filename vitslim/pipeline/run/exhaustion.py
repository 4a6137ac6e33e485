"""Errors of a run that the machine causes: a full or read-only disk, and too little memory."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from vitslim.errors import InputError, StageError

NOT_WRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG})
OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|bad allocation|std::bad_alloc", re.I)
"""Words of the errors of PyTorch and ONNX Runtime."""
_NUMBER = re.compile(r"os error (\d+)")
"""Number of an error of the system in the text of an error of safetensors."""


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Explain errors of the machine in one sentence. folder: of the finished stages, from which the run continues.

    Raises InputError if a file cannot be written, StageError if memory is exhausted.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _system_error(error)
        if number not in NOT_WRITABLE:
            raise
        # A copy names its source first.
        name = getattr(error, "filename2", None) or getattr(error, "filename", None) or folder
        hint = "free space or correct the permissions, then run the same command again: finished stages are kept"
        raise InputError(f"'{name}' cannot be written: {os.strerror(number)}", hint) from error
    except MemoryError as error:
        raise _exhausted("Python") from error
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise _exhausted("PyTorch") from error


def _system_error(error: OSError | SafetensorError) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else 0


def _exhausted(library: str) -> StageError:
    hint = "lower `train.batch` or `data.calibration`, then run the same command again: finished stages are kept"
    return StageError(f"the memory of this machine is exhausted: {library} could not allocate more", hint)
