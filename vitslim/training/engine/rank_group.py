"""The group of all ranks of a run, from its start to its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from torch import distributed

from vitslim.errors import RankLostError, VitslimError
from vitslim.ranks import launched_ranks, rank
from vitslim.training.engine.fabric import TIMEOUT

LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Parts of PyTorch's messages when another rank is gone."""
REPORTED = "vitslim/reported"
"""Key of torchrun's store that counts the ranks with an error."""
REPORT_TIMEOUT = timedelta(seconds=10)


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the ranks that torchrun started, until the context ends; without torchrun do nothing.

    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL. Raises RankLostError if another rank is gone, or if
    this one is asked to end. Of the errors of all ranks, those after the first one are marked as reported.
    """
    if launched_ranks() == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group(backend, timeout=TIMEOUT)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(word in str(error) for word in LOST):
            raise
        lost = RankLostError("another rank stopped", "run the same command again to resume")
        lost.is_reported = not _reports_first()
        raise lost from error
    except VitslimError as error:
        error.is_reported = not _reports_first()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    distributed.destroy_process_group()


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise RankLostError("the run was asked to end", "run the same command again to resume")


def _reports_first() -> bool:
    """Return whether this rank is the first one with an error; rank 0 if torchrun's store is gone already."""
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, is_master=False, timeout=REPORT_TIMEOUT)  # type: ignore[attr-defined]
        return store.add(REPORTED, 1) == 1
    except RuntimeError:
        return rank() == 0
