"""Finished and unfinished runs on disk: list them, show their stored stages, and delete those that no result uses.

Imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitslim.errors import InputError
from vitslim.files import exclusive, folder_bytes
from vitslim.report import parse_report
from vitslim.report.tables.headline import headline
from vitslim.results import Report, StageRecord, Value

STAGES_SUFFIX = ".stages"
RECORD_FILE = "record.json"
REPORT_FILE = "report.json"
MAX_REPORT_BYTES = 200_000_000


class RunSummary(Value):
    """One run: its result, if it has finished, and the space of its folders."""

    folder: str
    name: str = ""
    model: str = ""
    created: str = ""
    """Time of the report, ISO 8601; empty for a run without a result."""
    headline: str = ""
    gates_passed: int = 0
    gates: int = 0
    result_bytes: int = 0
    stages_bytes: int = 0
    """Of the stored stages, with checkpoints of unfinished ones."""


class StageFolder(Value):
    """One stored stage of a run, or the checkpoints of an unfinished one."""

    folder: str
    method: str = ""
    """Empty for the checkpoints of an unfinished stage."""
    seconds: float = 0
    bytes: int
    used: bool
    """Whether a result uses the stage. Of a run without a result, every stage counts as used."""


@dataclass(frozen=True)
class _Run:
    """The result folder of a run, which may not exist, and the folder of its stages, which may not exist either."""

    result: Path
    stages: Path

    def reports(self) -> Iterator[Report]:
        """Yield the reports of the result and of its snapshots, OUT-NAME."""
        folders = [self.result, *self.result.parent.glob(f"{self.result.name}-*")]
        for file in (folder / REPORT_FILE for folder in folders):
            if file.is_file():
                yield read_report(file)


def stages_folder(out: Path) -> Path:
    """Return the folder of the stored stages of a run, given by the folder of its result."""
    return out.with_name(out.name + STAGES_SUFFIX)


def read_report(file: Path) -> Report:
    """Return the report of a file. Raises InputError if it is missing, too large or not a report."""
    try:
        if file.stat().st_size > MAX_REPORT_BYTES:
            raise InputError(f"'{file}' is larger than {MAX_REPORT_BYTES // 10**6} MB", "is it a report of vitslim?")
        return parse_report(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read", "give the report.json of a finished run") from error


def list_runs(root: Path) -> tuple[RunSummary, ...]:
    """Return the runs below a folder, the newest first, unfinished ones last. Raises InputError if it is missing."""
    runs = [_summary(run) for run in _runs(root)]
    return tuple(sorted(runs, key=lambda run: run.created, reverse=True))


def stage_folders(run: Path) -> tuple[StageFolder, ...]:
    """Return the stored stages of a run, given by the folder of its result. Raises InputError if it has none."""
    found = _Run(run, stages_folder(run))
    if not found.stages.is_dir():
        raise InputError(
            f"'{run}' has no stored stages: there is no folder '{found.stages}'", "see `vitslim runs list`"
        )
    keys = {stage.key for report in found.reports() for stage in report.stages}
    folders = sorted(path for path in found.stages.iterdir() if path.is_dir())
    return tuple(_stage(path, not keys or path.name.rpartition("-")[2] in keys) for path in folders)


def prune_run(run: Path, *, everything: bool, dry_run: bool) -> tuple[StageFolder, ...]:
    """Delete the stored stages of a run that no result uses, or `everything` that is stored; results stay.

    Returns the deleted stages. With `dry_run`, nothing is deleted. Raises InputError if the run has no stored stages,
    UsageError while it runs.
    """
    folder = stages_folder(run)
    gone = tuple(stage for stage in stage_folders(run) if everything or not stage.used)
    if gone and not dry_run:
        with exclusive(folder):
            for stage in gone:
                shutil.rmtree(folder / stage.folder)
    return gone


def _runs(root: Path) -> Iterator[_Run]:
    if not root.is_dir():
        raise InputError(f"there is no folder '{root}'", "name the folder that holds the runs")
    results = {path for path in root.iterdir() if (path / REPORT_FILE).is_file()}
    stages = {path for path in root.iterdir() if path.is_dir() and path.name.endswith(STAGES_SUFFIX)}
    results |= {path.with_name(path.name.removesuffix(STAGES_SUFFIX)) for path in stages}
    for path in sorted(results):
        yield _Run(path, stages_folder(path))


def _summary(run: _Run) -> RunSummary:
    summary = RunSummary(
        folder=str(run.result), result_bytes=folder_bytes(run.result), stages_bytes=folder_bytes(run.stages)
    )
    if not (run.result / REPORT_FILE).is_file():
        return summary
    report = read_report(run.result / REPORT_FILE)
    return summary.model_copy(
        update={
            "name": report.name,
            "model": report.model,
            "created": report.created,
            "headline": headline(report),
            "gates": len(report.gates),
            "gates_passed": sum(gate.passed for gate in report.gates),
        }
    )


def _stage(folder: Path, used: bool) -> StageFolder:
    try:
        record = StageRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    except FileNotFoundError:
        return StageFolder(folder=folder.name, bytes=folder_bytes(folder), used=used)
    except ValueError as error:
        raise InputError(f"'{folder / RECORD_FILE}' is corrupt", "delete the folder") from error
    return StageFolder(
        folder=folder.name,
        method=record.method or record.kind,
        seconds=record.seconds,
        bytes=folder_bytes(folder),
        used=used,
    )
