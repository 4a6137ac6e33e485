"""Train the weights that `vitslim run quickstart` starts from, and write them as FP16.

    python scripts/train_quickstart.py [--out recipes/quickstart.safetensors]

A small timm ViT on the digits of scikit-learn: 64 patches and a class token, four blocks of width 192. The training
recipe is fixed, and the weights of the last epoch are kept; the validation split is used once, after training. Takes
about 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file

from vitslim.data import load_data
from vitslim.graph.model_graph import ModelSource, Preprocessing
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.train import Train
from vitslim.training import LOSS, Batch, hard_loss, predict, top1, train

NAME = "vit_tiny_patch16_224"
KWARGS = {"img_size": 32, "patch_size": 4, "in_chans": 1, "depth": 4, "num_classes": 10}
SEED = 0
TRAIN = Train(epochs=100, batch=64, lr=1e-3, wd=0.05, warmup=0.05, label_smoothing=0.1, augment="light")


class Bars(Silent):
    """Progress bars on standard error."""

    def track(self, items, label, total=None, images=0):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Draw a progress bar."""
        return iter(track(items, label, total=total, console=Console(stderr=True)))


def main() -> None:
    """Train, save, and print the accuracy of the saved weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "recipes" / "quickstart.safetensors")
    out: Path = parser.parse_args().out

    torch.manual_seed(SEED)
    model = timm.create_model(NAME, pretrained=False, **KWARGS)
    # The digits have their own normalization; the preprocessing of the source is for image folders.
    preprocessing = Preprocessing(mean=(0.5,), std=(0.5,), interpolation="bilinear", crop_pct=1.0)
    data = load_data(Data(kind="digits"), ModelSource(NAME, KWARGS, (1, 32, 32), 10, preprocessing), SEED)

    def objective(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {LOSS: hard_loss(logits, batch.labels, TRAIN.label_smoothing)}

    started = time.perf_counter()
    metrics = train(model, data.train, objective, TRAIN, SEED, {}, Bars())
    stored = {name: weight.half() for name, weight in model.state_dict().items()}
    save_file(stored, out)

    model.load_state_dict({name: weight.float() for name, weight in stored.items()})
    logits, labels = predict(model, data.val, 60, Silent(), "validation")
    print(f"{out}: {out.stat().st_size} bytes, {time.perf_counter() - started:.0f} s")
    print(f"training loss {metrics['loss_first']:.3f} -> {metrics['loss_last']:.3f}")
    print(f"top-1 on the validation split ({len(labels)} digits): {100 * top1(logits, labels):.2f} %")


if __name__ == "__main__":
    main()
