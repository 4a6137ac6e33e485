"""Targets of the fuzzer: a reader of untrusted files, and the valid files that are changed.

Every input must be read, or refused with a `VitslimError` that has a message; any other exception is a finding.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import mutations
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from vitslim.data.files.containers.shards import ShardImage
from vitslim.data.files.containers.tar_index import index_tar
from vitslim.data.files.decode import read_image
from vitslim.errors import VitslimError
from vitslim.pipeline.check import check_recipe
from vitslim.recipe import load_recipe
from vitslim.recipe.catalog import packaged_recipes
from vitslim.recipe.document.grammar import recipe_schema
from vitslim.recipe.document.yaml12 import parse_yaml
from vitslim.recipe.sources.zip_archive import unpack

BATCH = 50
"""Inputs for each seed."""
RECIPE = "name: x\nmodel: {timm: deit_tiny_patch16_224}\ndata: {kind: digits}\nstages: [export]\n"


class Target(Protocol):
    """A reader of files and its inputs."""

    read: int
    """Inputs that were read; all others were refused."""

    def make(self, random: Random) -> None:
        """Write the next input."""

    def take(self) -> None:
        """Read the input."""

    def keep(self) -> Path:
        """Copy the last input to a folder that stays, and return it."""


def check_batch(target: Target, first: int, count: int = BATCH) -> int:
    """Read a batch of random inputs; return their number. A failure has the smallest input that hypothesis finds."""

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def read_all(random: Random) -> None:
        target.make(random)
        try:
            target.take()
            target.read += 1
        except VitslimError as error:
            assert str(error), "a refusal without a message"

    read_all()
    return count


def kept_copy(path: Path) -> Path:
    """Copy the folder of an input to a new temporary folder; return the path of the input there."""
    folder = Path(tempfile.mkdtemp(prefix="vitslim-fuzz-"))
    shutil.copytree(path.parent, folder, dirs_exist_ok=True)
    return folder / path.name


class Files:
    """A target whose inputs are the changed bytes of one file."""

    read = 0

    def __init__(self, path: Path, samples: Sequence[bytes], reader: Callable[[Path], object]) -> None:
        self.path, self.samples, self.reader = path, samples, reader

    def make(self, random: Random) -> None:
        """Write a changed sample."""
        self.path.write_bytes(mutations.mutated_bytes(random.choice(self.samples), random))

    def take(self) -> None:
        """Read it."""
        self.reader(self.path)

    def keep(self) -> Path:
        """Copy the last input."""
        return kept_copy(self.path)


class Documents(Files):
    """A target whose inputs are changed documents in JSON, and the changed bytes of such files."""

    def __init__(
        self, path: Path, documents: Sequence[Any], reader: Callable[[Path], object], words: Sequence[str] = ()
    ) -> None:
        super().__init__(path, [json.dumps(one).encode() for one in documents], reader)
        self.documents, self.words = documents, words

    def make(self, random: Random) -> None:
        """Write a changed document, or in one of five cases a file with changed bytes."""
        if random.random() < 0.2:
            super().make(random)
            return
        found = mutations.mutated_document(random.choice(self.documents), random, self.words)
        self.path.write_text(json.dumps(found), encoding="utf-8", errors="surrogatepass")


def recipe_target(folder: Path) -> Target:
    """Recipes, which are YAML; JSON is a part of it."""
    documents = [parse_yaml(one.path.read_text(encoding="utf-8"), one.name) for one in packaged_recipes()[::3]]
    words = sorted({key for part in recipe_schema()["$defs"].values() for key in part.get("properties", {})})

    def read(path: Path) -> None:
        check_recipe(load_recipe(path, partial=True))

    return Documents(folder / "recipe.yaml", documents, read, words)


def yaml_target(folder: Path) -> Target:
    """The text of recipes."""
    texts = [one.path.read_bytes() for one in packaged_recipes()]
    return Files(folder / "recipe.yaml", [*texts, RECIPE.encode()], lambda path: load_recipe(path, partial=True))


def zip_target(folder: Path) -> Target:
    """Archives of `vitslim recipes pack`."""
    samples = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name, content in (("recipe.yaml", RECIPE), ("a/b.txt", "cat\n" * 30), ("c", "dog")):
                archive.writestr(name, content)
        samples.append(file.getvalue())
    return Files(folder / "shared.zip", samples, unpack)


def shard_target(folder: Path) -> Target:
    """WebDataset shards: their headers, labels and images."""
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("0.png", image.getvalue()), ("0.cls", b"1"), ("1.png", image.getvalue()),
                              ("1.json", b'{"label": 0}'), ("note.txt", b"x")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    def read(path: Path) -> None:
        index = index_tar(path, None)
        for name, start, size in zip(index.names, index.starts, index.sizes, strict=True):
            read_image(ShardImage(path, name, start, size), "RGB", 10**6)

    return Files(folder / "shard.tar", [file.getvalue()], read)


def onnx_target(folder: Path) -> Target:
    """ONNX files: the operators, the contents and the metadata."""
    from onnx_target import OnnxFiles

    return OnnxFiles(folder)


def checkpoint_target(folder: Path) -> Target:
    """Checkpoints in safetensors, and those that `torch.save` and NumPy write."""
    from tensor_targets import checkpoints

    return checkpoints(folder)


def training_target(folder: Path) -> Target:
    """States of interrupted trainings."""
    from tensor_targets import training_states

    return training_states(folder)


def graph_target(folder: Path) -> Target:
    """Saved graphs: their edits and tensors."""
    from tensor_targets import SavedGraphs

    return SavedGraphs(folder)


def report_target(folder: Path) -> Target:
    """Reports and the manifests of runs, which `compare`, `report` and `runs` read."""
    from tensor_targets import reports

    return reports(folder)


def table_target(folder: Path) -> Target:
    """Latency tables."""
    from tensor_targets import tables

    return tables(folder)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "recipe": recipe_target,
    "yaml": yaml_target,
    "zip": zip_target,
    "shard": shard_target,
    "onnx": onnx_target,
    "checkpoint": checkpoint_target,
    "training": training_target,
    "graph": graph_target,
    "report": report_target,
    "table": table_target,
}
