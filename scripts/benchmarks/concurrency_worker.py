"""One process that fills a cache: `concurrency_worker.py CACHE SEED SOURCE...`; see `concurrency`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

from vitslim.files import exclusive, replace_atomically, write_atomically
from vitslim.latency_grid import LatencyGrid, MatmulLatencies
from vitslim.pipeline.table_file import kept_table, read_table
from vitslim.progress import Silent
from vitslim.recipe import load_recipe
from vitslim.results import Environment, LatencyTable

LOG = "begun.log"
"""Each process appends the name of an entry that it begins to fill, and its own id."""
PIECE = bytes(range(256)) * 256
PIECES = 16
RECIPE = "name: shared\nmodel: {timm: deit_tiny_patch16_224}\ndata: {kind: digits}\nstages: [export]\n"


def main(cache: Path, seed: int, sources: list[str]) -> None:
    """Fill every entry of the cache, in a random order."""
    steps: list[Callable[[], None]] = [lambda s=source: load_recipe(s) and None for source in sources]  # type: ignore[misc]
    steps += [lambda n=n: _fill_file(cache / "files" / f"{n}.bin") for n in range(3)]  # type: ignore[misc]
    steps += [lambda n=n: _fill_folder(cache / "folders" / str(n)) for n in range(3)]  # type: ignore[misc]
    steps += [lambda n=n: _fill_table(cache / "tables" / f"{n}.json") for n in range(2)]  # type: ignore[misc]
    random.Random(seed).shuffle(steps)
    for step in steps:
        step()


def entries(cache: Path) -> list[Path]:
    """Return the entries that a full cache holds."""
    shared = sorted((cache / "vitslim" / "recipes").glob("*/**/recipe.yaml"))
    shared += [cache / f"missing-{n}" for n in range(2 - len(shared))]
    names = [*(f"files/{n}.bin" for n in range(3)), *(f"folders/{n}" for n in range(3)),
             *(f"tables/{n}.json" for n in range(2))]  # fmt: skip
    return [*shared, *(cache / name for name in names)]


def is_whole(path: Path) -> bool:
    """Return whether an entry has its whole content."""
    if path.parent.name == "tables":
        return read_table(path) == _table(path.stem)
    if path.suffix == ".yaml":
        return path.read_text() == RECIPE
    if path.is_dir():
        return [(path / f"{n}").read_bytes() for n in range(PIECES)] == [PIECE] * PIECES
    return path.read_bytes() == PIECE * PIECES


def shared_recipes(folder: Path) -> list[str]:
    """Write an archive and a git repository with a recipe; return how a command names them."""
    with ZipFile(folder / "shared.zip", "w") as archive:
        archive.writestr("recipe.yaml", RECIPE)
    work = folder / "work"
    work.mkdir()
    (work / "recipe.yaml").write_text(RECIPE)
    identity = ["-c", "user.name=Team", "-c", "user.email=team@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "recipe"]):
        subprocess.run(["git", *identity, *arguments], cwd=work, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=work, check=True, capture_output=True, text=True)
    return [str(folder / "shared.zip"), f"git+file://{work}@{commit.stdout.strip()}#recipe.yaml"]


def _fill_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.parent, on_wait=lambda: None):
        if not path.exists():
            _begin(path.name)
            write_atomically(path, PIECE * PIECES, "")


def _fill_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.parent, on_wait=lambda: None):
        if not path.exists():
            _begin(f"folder-{path.name}")
            with replace_atomically(path) as scratch:
                for n in range(PIECES):
                    (scratch / f"{n}").write_bytes(PIECE)
                    time.sleep(0.002)


def _fill_table(path: Path) -> None:
    def build() -> LatencyTable:
        _begin(path.name)
        time.sleep(0.02)
        return _table(path.stem)

    kept_table(path, build, Silent())


def _begin(name: str) -> None:
    with (Path(sys.argv[1]) / LOG).open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
    time.sleep(0.02)


def _table(model: str) -> LatencyTable:
    grid = LatencyGrid(counts=(1,), rows=(8,), reduce=(8, 16), columns=(8, 16), ms=(1.0, 2.0, 3.0, 6.0))
    return LatencyTable(
        model=model, backend="sim:systolic", kind="simulated", batch=1, threads=None, n=0, spread=0.0, dense_ms=9.0,
        environment=Environment(device="a CPU", cores=1, versions={}), rest_ms=1.0, token_ms=0.5, squeeze_ms=0.1,
        matmuls=MatmulLatencies(linear=grid, attention=grid), fixed_ms=0.5,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
