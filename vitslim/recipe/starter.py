"""A commented recipe to start from."""

from __future__ import annotations

import re

from vitslim.errors import UsageError
from vitslim.recipe.config import TIMM_PATTERN
from vitslim.recipe.schema import NAME_PATTERN

_TEXT = """\
# What to do with {model}, from top to bottom. Check it: vitslim plan FILE; run it: vitslim run FILE
name: {name}
description: {model}, smaller and faster

model:
  timm: {model}
  # Trained weights, safetensors with timm's parameter names. Without them the model starts from random weights.
  # checkpoint: {model}.safetensors
  # Further arguments of timm.create_model:
  # kwargs: {{num_classes: 10}}

data:
  kind: imagefolder       # DIR/train/CLASS/* and DIR/val/CLASS/*; the other kind, digits, needs no files
  # root: DIR             # or give it on the command line: --set data.root=DIR
  calibration: 256        # training images that pruning and quantization look at

seed: 0

stages:
  # Cut the hidden widths of attention and MLP by a quarter; `mode: uniform` cuts the embedding too.
  - prune: {{method: depgraph, importance: taylor, pruning_ratio: 0.25, mode: bottleneck}}
  # Train it back with the dense model as teacher. One epoch shows that it works, more give better accuracy.
  - distill:
      teacher: dense
      loss: {{hard: 1, soft: 10}}
      train: {{epochs: 1, batch: 32, lr: 1e-4}}
  # Eight-bit weights and inputs of every linear layer.
  - quantize: {{method: ptq}}
  - export

report:
  backends: [onnxruntime:cpu, sim:systolic]
  batches: [1, 8]

# The run exits with 1 when one of these does not hold.
gates:
  top1_drop_max: 2.0      # points
  size_ratio_min: 4.0     # dense over compressed ONNX file
"""


def new_recipe_text(name: str, timm_model: str) -> str:
    """A recipe for a timm model, in YAML with comments.

    Raises UsageError for a name that is not fit for a folder, or a model name that timm cannot have.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        fit = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
        raise UsageError(f"'{name}' cannot be the name of a recipe", f"such as '{fit or 'my-model'}'")
    if not re.fullmatch(TIMM_PATTERN, timm_model):
        raise UsageError(f"'{timm_model}' is not the name of a timm model", "such as deit_tiny_patch16_224")
    return _TEXT.format(name=name, model=timm_model)
