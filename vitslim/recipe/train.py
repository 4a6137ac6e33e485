"""One training schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vitslim.errors import Problem
from vitslim.recipe.config import ASSUMED, Config
from vitslim.recipe.work import ImageCounts, Work


class Train(Config):
    """A training schedule."""

    epochs: PositiveInt = Field(3, description="passes over the training images")
    batch: PositiveInt = Field(64, description="images per optimizer step, which several ranks share")
    accumulate: PositiveInt = Field(
        1, description="parts of each batch that are computed one after the other, which divides the memory by it"
    )
    optimizer: Literal["adamw", "nadamw", "lamb", "lion", "sgd"] = Field(
        "adamw", description="optimizer of timm; `sgd` has Nesterov momentum"
    )
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="fall of the learning rate after the warm-up, to `min_lr`"
    )
    lr: PositiveFloat = Field(5e-5, description="peak learning rate", json_schema_extra={ASSUMED: True})
    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="learning rate at the end of the schedule")
    backbone_lr: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="learning rate of the source model's parameters, as a fraction of `lr`; the predictors that a "
        "`token-squeeze` stage adds learn at `lr`",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="factor by which the learning rate of each residual block is lower than that of the block after it",
    )
    wd: Annotated[float, Field(ge=0)] = Field(0.05, description="weight decay", json_schema_extra={ASSUMED: True})
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="fraction of the steps in which the learning rate rises"
    )
    clip: PositiveFloat = Field(1.0, description="maximum gradient norm")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay per step of a moving average of the weights, which becomes the trained model; default: no "
        "averaging",
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="stochastic depth: probability that training skips a residual branch of the last block for an "
        "image; it rises linearly from 0 in the first block",
    )
    images: PositiveInt | None = Field(None, description="train on at most N images, balanced over classes")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="label smoothing of the hard loss")
    augment: Literal["none", "light", "strong"] = Field(
        "none", description="light: crops of at least 70 % of the area; strong: of at least 10 %, and color jitter"
    )
    rand_augment: bool = Field(
        False, description="with `augment: light`: two random operations of RandAugment on each image, as DeiT"
    )
    random_erasing: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="probability that a rectangle of an image is replaced by noise; DeiT: 0.25"
    )
    repeated_augmentation: PositiveInt = Field(
        1,
        description="with `augment: light`: versions of each image in a batch, which has as many times fewer images; "
        "an epoch keeps its number of steps. DeiT: 3",
    )
    mixup: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="blend each image and its label with another one, by a weight of the batch from Beta(mixup, "
        "mixup), which is uniform for 1; 0: off",
    )
    cutmix: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="replace a rectangle of each image by another image and blend the labels by area, which is from "
        "Beta(cutmix, cutmix); 0: off. With `mixup`, each batch gets one of the two at random",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="data type of activations and matmuls; weights are always float32. auto: bfloat16 if the device "
        "has instructions for it",
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    compile: bool = Field(False, description="use torch.compile, which pays off in long training on a GPU")

    @property
    def has_mixing(self) -> bool:
        """Whether training sees mixtures of two images."""
        return self.mixup > 0 or self.cutmix > 0

    def work(self, images: ImageCounts) -> Work:
        """Return the work of all epochs, without that of teachers."""
        count = min(self.images or images.train, images.train)
        passes = self.epochs * count
        return Work(training=passes, decoded=passes if self.augment == "light" else count)

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions among the keys; `where` is relative to the schedule."""
        for key, is_used in (("rand_augment", self.rand_augment),
                             ("repeated_augmentation", self.repeated_augmentation > 1)):  # fmt: skip
            if is_used and self.augment != "light":
                yield Problem(key, f"`{key}` needs `augment: light`, got {self.augment}", "set `augment: light`")
        if self.batch % self.repeated_augmentation:
            message = f"a batch of {self.batch} images cannot hold {self.repeated_augmentation} versions of each"
            yield Problem("batch", message, f"set it to a multiple of {self.repeated_augmentation}")
        if self.min_lr > self.lr:
            message = f"got {self.min_lr:g}, which is above the peak learning rate {self.lr:g}"
            yield Problem("min_lr", message, "lower `min_lr`, or raise `lr`")
        if self.has_mixing and self.batch % 2:
            message = f"`mixup` and `cutmix` mix pairs of images and need an even batch, got {self.batch}"
            yield Problem("batch", message, f"set `batch: {self.batch + 1}`")
