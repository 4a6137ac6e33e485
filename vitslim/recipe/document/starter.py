"""A commented recipe to start from."""

from __future__ import annotations

import re

from vitslim.errors import UsageError
from vitslim.recipe.config import TIMM_PATTERN
from vitslim.recipe.schema import NAME_PATTERN

_TEXT = """\
# Compress {model}. Show the cost of each stage: vitslim plan FILE; run it: vitslim run FILE
# All keys: vitslim recipes describe METHOD
name: {name}
description: {model} with structural pruning, distillation and INT8

model:
  timm: {model}
  # Pretrained weights: .safetensors, .pth, .ckpt, .npz. Without them the weights are random.
  # checkpoint: {model}.safetensors
  # Arguments of timm.create_model:
  # kwargs: {{num_classes: 10}}

data:
  kind: imagefolder       # DIR/train/CLASS/* and DIR/val/CLASS/*; or digits, which needs no files
  # root: DIR             # or on the command line: --data DIR
  calibration: 256        # training images for calibration

seed: 0

stages:
  # Remove a quarter of the MLP units. Without `head_dim: 0` heads lose a quarter too, and `mode: uniform` prunes the
  # embedding: both need more training.
  - prune:
      method: depgraph
      importance: taylor
      mode: bottleneck
      pruning_ratio: 0.25
      pruning_ratios: {{head_dim: 0}}
  # Recover accuracy with the dense model as teacher. More epochs give better accuracy.
  - distill:
      teacher: dense
      loss: {{hard: 1, soft: 10}}
      train: {{epochs: 1, batch: 32, lr: 1e-4, precision: auto}}     # bfloat16 if the processor has instructions for it
  # INT8 weights and activations of every linear layer.
  - quantize: {{method: ptq, bits: 8}}
  - export

report:
  backends: [onnxruntime:cpu, sim:systolic]
  batches: [1, 8]

# The run exits with code 1 if the result violates one of these.
gates:
  top1_drop_max: 2.0      # points
  size_ratio_min: 4.0     # dense over compressed ONNX file
"""


def new_recipe_text(name: str, timm_model: str) -> str:
    """Return a recipe for a timm model, in YAML with comments.

    Raises UsageError for an invalid recipe name or an invalid name of a timm model.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        valid = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
        expected = "lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"
        raise UsageError(f"got the recipe name '{name}', expected {expected}", f"such as '{valid or 'my-model'}'")
    if not re.fullmatch(TIMM_PATTERN, timm_model):
        message = f"got '{timm_model}', expected the name of a timm model"
        raise UsageError(message, "such as deit_tiny_patch16_224")
    return _TEXT.format(name=name, model=timm_model)
