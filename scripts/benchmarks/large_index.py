"""Start of a run on a million images: seconds to the first batch, and memory; as files of a folder, and as shards.

All files are hard links to one small JPEG, and all shards to one tar file, so that a million images need about 100 MB.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = 1_000_000
CLASSES = 1000
LINKS_MAX = 50_000
"""Hard links of one file; ext4 allows 65,000."""
PER_SHARD = 10_000
SIDE = 16
STEPS = 400
"""Batches of 32 images after which memory is measured again."""

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from vitslim.data import load_data
from vitslim.graph.model_graph import ModelSource, Preprocessing
from vitslim.recipe.schema import Data

def memory_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6

kind, root, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
source = ModelSource("vit_tiny_patch16_224", {}, (3, 16, 16), 1000, preprocessing)
start, cpu = time.perf_counter(), time.process_time()
config = Data(kind=kind, root=root, val_fraction=0.05, classes="torchvision")
data = load_data(config, source, 0)
batches = iter(data.train.augmented(1).batches(32, shuffle_seed=1))
next(batches)
figures = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu, "mb": memory_mb()}
for _, _ in zip(range(steps), batches):
    pass
print(json.dumps({**figures, "mb_after_steps": memory_mb(), "images": len(data.train) + len(data.val)}))
"""


def run() -> dict[str, float]:
    """Return the seconds to the first batch without and with a known digest, and the memory of each kind of data."""
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, write in (("webdataset", write_shards), ("imagefolder", write_folder)):
            root = Path(scratch, kind)
            root.mkdir()
            write(root, IMAGES)
            for time_of_run in ("first", "later"):
                found = start(kind, root, Path(scratch, "cache"))
                figures |= {f"{kind}_{time_of_run}_{name}": value for name, value in found.items()}
    return figures


def start(kind: str, root: Path, cache: Path, steps: int = STEPS) -> dict[str, float]:
    """Return seconds and megabytes of a process of its own that reads the first batches. cache: that of the user."""
    command = [sys.executable, "-c", PROGRAM, kind, str(root), str(steps)]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)}
    )
    found: dict[str, float] = json.loads(result.stdout)
    return found


def write_folder(root: Path, images: int) -> None:
    """Write `images` hard links to a few files, in class folders."""
    sources = root.with_name("sources")
    sources.mkdir()
    for number in range(0, images, LINKS_MAX):
        (sources / f"{number}.jpg").write_bytes(_jpeg())
    for label in range(CLASSES):
        (root / f"class{label:04d}").mkdir()
    for number in range(images):
        os.link(
            sources / f"{number // LINKS_MAX * LINKS_MAX}.jpg", root / f"class{number % CLASSES:04d}" / f"{number}.jpg"
        )


def write_shards(root: Path, images: int) -> None:
    """Write shards of `PER_SHARD` samples with class indices: hard links to one file."""
    content, first = _jpeg(), root / "set-000000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(PER_SHARD):
            for name, data in ((f"{number:07d}.jpg", content), (f"{number:07d}.cls", b"%d" % (number % CLASSES))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for shard in range(1, images // PER_SHARD):
        os.link(first, root / f"set-{shard:06d}.tar")


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (90, 40, 10)).save(file, "JPEG", quality=50)
    return file.getvalue()
