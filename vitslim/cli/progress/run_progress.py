"""The progress of `vitslim run`: the terminal, and the files that its options name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitslim.cli.progress import INTERRUPTED
from vitslim.cli.progress.console_progress import ConsoleProgress
from vitslim.cli.progress.event_file import EventFile
from vitslim.errors import VitslimError
from vitslim.progress import Progress, Silent
from vitslim.ranks import is_first_launched


@contextmanager
def run_progress(events: Path | None, tensorboard: Path | None) -> Iterator[Progress]:
    """Yield the progress of a run, and close its files after it; the last event holds the exit code.

    Of several ranks only rank 0 shows and writes anything.

    Raises InputError if the file of the events cannot be written, UsageError without the package `tensorboard`.
    """
    if not is_first_launched():
        yield Silent()
        return
    progress: Progress = ConsoleProgress()
    with ExitStack() as stack:
        if events is not None:
            progress = stack.enter_context(_events(EventFile(progress, events)))
        if tensorboard is not None:
            from vitslim.cli.progress.tensorboard_log import TensorBoardLog

            log = TensorBoardLog(progress, tensorboard)
            stack.callback(log.close)
            progress = log
        yield progress


@contextmanager
def _events(file: EventFile) -> Iterator[EventFile]:
    try:
        yield file
    except VitslimError as error:
        file.close(error.exit_code, error)
        raise
    except KeyboardInterrupt as error:
        file.close(INTERRUPTED, error)
        raise
    except Exception as error:
        file.close(VitslimError.exit_code, error)
        raise
    file.close(0)
