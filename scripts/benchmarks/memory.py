"""Peak memory and seconds of quantization and 2:4 pruning of large models, without evaluation and export.

Weights are random and images are the embedded digits, enlarged: neither memory nor time depends on their values. Each
stage runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CASES = {
    "vit_base_ptq": ("vit_base_patch16_224", {"quantize": {"method": "ptq"}}, 256),
    "vit_large_ptq": ("vit_large_patch16_224", {"quantize": {"method": "ptq"}}, 64),
    "vit_large_two_four": ("vit_large_patch16_224", {"prune": {"method": "two-four", "score": "sparsegpt"}}, 64),
}
"""Name to a timm model, a stage, and the number of calibration images."""


def run() -> dict[str, float]:
    """Return GiB of peak memory and seconds of each stage, the memory before it, and the size of the weights."""
    figures: dict[str, float] = {}
    for name, (model, stage, images) in CASES.items():
        program = Path(__file__).with_name("memory_stage.py")
        command = [sys.executable, str(program), model, json.dumps(stage), str(images)]
        print(f"{name}: {model}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = {"images": float(images), **json.loads(done.stdout)}
        figures |= {f"{name}_{key}": value for key, value in found.items()}
    return figures
