"""The recipe as a frozen, typed value; unknown keys are rejected."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny

from vitslim.recipe.config import EXPECTED, Config, TimmName
from vitslim.recipe.gates import Gates
from vitslim.recipe.preprocessing import PreprocessingConfig
from vitslim.recipe.stage_config import StageConfig
from vitslim.tasks import Task

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
_NAME = {EXPECTED: "lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"}
CLASS_ORDERS = ("timm", "torchvision")
_LARGEST_SEED = 2**32 - 1
HUB = "hub:"
"""Prefix of a data set on the Hugging Face hub."""
HUB_ROOT = re.compile(rf"{HUB}[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?")
FILE_KINDS = ("imagefolder", "webdataset", "huggingface")
"""Kinds of data that are read from `data.root`."""
PIXELS_MAX = 178_956_970
"""Pixels above which Pillow refuses an image by default."""


class Revit(Config):
    """A vision transformer whose widths follow the redistribution rule of NViT; its weights are random."""

    embed: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = Field(description="width of the residual stream")
    variant: Literal["released", "paper"] = Field(
        "released",
        description="paper: the rule as printed; released: that of the authors' script, with ten heads in the first "
        "and the last block, which reproduces the printed sizes",
    )


class Model(Config):
    """The dense model: a timm model, or a ReViT."""

    timm: TimmName | None = Field(None, description="name of the timm model")
    revit: Revit | None = Field(None, description="instead of a timm model: a ReViT of 12 blocks with 16x16 patches")
    checkpoint: str | None = Field(
        None,
        description="weights: .safetensors, .npz, a file that torch.save wrote (.pth, .pt, .bin, .ckpt), or a folder "
        "with model.safetensors and the config.json of timm, which also gives `timm`, `kwargs` and the preprocessing; "
        "`package:NAME`: a file that ships with vitslim",
    )
    checkpoint_entry: str | None = Field(
        None,
        description="entry of the checkpoint that holds the weights; default: the first of `state_dict_ema`, "
        "`model_ema`, `state_dict` and `model`",
    )
    kwargs: dict[str, int | float | str | bool | tuple[int, ...]] = Field(
        {}, description="arguments of timm.create_model"
    )
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    task: Task | None = Field(
        None,
        description="classify: one label for each image; multilabel: any number of labels, by a sigmoid; features: an "
        "embedding, or the maps of a backbone (`kwargs: {features_only: true}`). Default: features for a model without "
        "a classifier, such as one with `kwargs: {num_classes: 0}`; else classify",
    )

    @property
    def name(self) -> str:
        """Name of the model in messages and in the report."""
        return self.timm or (f"revit-{self.revit.embed}-{self.revit.variant}" if self.revit else "")


class Data(Config):
    """The images of a run: those of a folder or of its shards, or those that a table or a dataset lists."""

    kind: Literal["digits", "imagefolder", "webdataset", "huggingface"] = Field(
        description="digits: handwritten digits that ship with scikit-learn; imagefolder: the image files below "
        "`root`, or of a table; webdataset: tar shards; huggingface: a dataset of the package `datasets`"
    )
    root: str | None = Field(
        None,
        description="folder that holds train/ and val/ (or valid/, validation/) with one folder per class, or with "
        "images only, which have no labels. Or a table: a .csv file with the columns `path,label[,split]`, or a .jsonl "
        "file with these keys in each line; paths are relative to it, a label is a class name or an index, and "
        "`labels` in place of `label` holds several names separated by `;`. webdataset: a folder that holds "
        "train/*.tar and val/*.tar, or shards whose names say the split. huggingface: a folder of `save_to_disk` or of "
        "parquet files, or `hub:ORG/NAME@REVISION`, which is downloaded",
    )
    label_field: str | None = Field(
        None,
        description="webdataset: `cls`, or the key of the JSON members that holds the label; huggingface: the column "
        "of the label. Default: `cls`, `label` or `labels`, else the only column of class labels",
    )
    classes: str | tuple[str, ...] | None = Field(
        None,
        description="order of the class names, as the model was trained: `timm` (by number), `torchvision` (by "
        "character), a file with one name per line, or the names, in the order of the model's outputs. "
        "Default: WordNet ids are mapped to ImageNet; where timm and torchvision agree, their order; else the order "
        "in which the dense model is right on training images. Class labels of a Hugging Face dataset have an order",
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="without a validation set: fraction of the images of each class that is taken from training for "
        "it, drawn with the seed of the run",
    )
    max_pixels: PositiveInt = Field(
        PIXELS_MAX, description="refuse images with more pixels, which need much memory; raise it for large scans"
    )
    calibration: PositiveInt = Field(256, description="training images used for calibration")
    eval_images: PositiveInt | None = Field(None, description="evaluate on at most N images")
    also_evaluate: dict[str, str] = Field({}, description="further labeled image folders by name")
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="disk space in the user's cache folder, in GB of 10^9 bytes, for decoded images of all runs, which "
        "later stages and later runs read in place of the files; the images that were not used for longest make room. "
        "0: none. Augmented training always decodes the files",
    )


class ReportConfig(Config):
    """Backends, batch sizes and thread counts of the report."""

    backends: tuple[str | dict[str, Any], ...] = Field(
        ("onnxruntime:cpu",), description="names, or {sim: TARGET or FILE.yaml} with settings of the target"
    )
    batches: tuple[PositiveInt, ...] = Field((1,), min_length=1, description="batch sizes")
    threads: tuple[PositiveInt, ...] = Field((1,), min_length=1, description="thread counts of measured CPU backends")
    seconds: Annotated[float, Field(gt=0)] = Field(
        2.0, description="measuring time of each file, batch size and thread count"
    )
    memory: bool = Field(
        False,
        description="measure the peak memory too, on backends that run on the CPU: the rise of the resident memory of "
        "a fresh process while it opens the file and runs a batch",
    )
    profile: bool = Field(
        False,
        description="list the time of each operator of the dense and the final model, from the profiler of ONNX "
        "Runtime at the first batch size and thread count",
    )


class Recipe(Config):
    """A validated recipe."""

    name: str = Field(pattern=NAME_PATTERN, max_length=64, json_schema_extra={**_NAME})
    description: str = ""
    model: Model
    data: Data
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] = 0
    stages: tuple[SerializeAsAny[StageConfig], ...]
    report: ReportConfig = ReportConfig()
    gates: Gates = Gates()
