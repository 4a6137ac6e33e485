"""The base of all stage configs, and the phases that order them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, ClassVar, get_args

from pydantic import Field

from vitslim.errors import Problem
from vitslim.recipe.accelerators import AcceleratorName
from vitslim.recipe.config import EXPECTED, Config
from vitslim.recipe.formats.file_form import OPSETS
from vitslim.recipe.formats.profiles import Profile
from vitslim.recipe.train import Train
from vitslim.recipe.work import ImageCounts, Work

STAGE_FILES = (("teacher", "checkpoint"), ("label_teacher", "checkpoint"), ("budget", "table"), ("schedule", "table"))
"""Keys of stages whose mapping, or list of mappings, names a file, each with the key of the file."""


class Phase(Enum):
    """The phase of a stage in a recipe; `rules.py` defines which phase may follow which."""

    STRUCTURE = "structural pruning"
    TOKENS = "token squeezing"
    MASK = "a sparsity mask"
    TRAIN = "training"
    PRECISION = "quantization"
    EXPORT = "export"


class StageConfig(Config):
    """Keys and properties that every stage has."""

    kind: ClassVar[str]
    """The key that begins a stage entry: `prune`, `distill`, ..."""
    phase: ClassVar[Phase]

    method: str
    name: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9-]*$",
        max_length=64,
        description="name that later stages can refer to",
        json_schema_extra={EXPECTED: "lower-case letters, digits and '-', beginning with a letter"},
    )

    def make_stage(self) -> Any:
        """Return the stage that runs the config, for a method of a plugin.

        The result implements `vitslim.stages.contract.Stage`. Methods of vitslim are in `vitslim.stages.registry`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no stage: `make_stage` must return one")

    @property
    def removes_attention(self) -> bool:
        """Whether a block may have no attention after this stage."""
        return False

    @property
    def ranks_head_widths(self) -> bool:
        """Whether data decides the width of Q and K and that of V of each head, so that the two may differ."""
        return False

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        """Positions of the blocks in which this stage reduces the number of tokens."""
        return ()

    @property
    def training(self) -> Train | None:
        """The training schedule of the stage; None for a stage that does not train."""
        return None

    @property
    def export_profile(self) -> Profile | None:
        """The form of the file that the stage writes; None for a stage that writes none."""
        return None

    @property
    def lowest_opset(self) -> int:
        """The lowest ONNX opset that stores the weights of this stage."""
        return OPSETS[0]

    @property
    def approximation(self) -> AcceleratorName | None:
        """The accelerator under whose approximations the stage trains; None without any."""
        return None

    @property
    def snapshot_names(self) -> tuple[str, ...]:
        """Names of further results of the stage; the stages after it run for each of them too."""
        return ()

    @property
    def reads_labels(self) -> str:
        """The reason that the stage reads the labels of training images; empty if it does not."""
        return ""

    @property
    def labels_hint(self) -> str:
        """How to run the stage without labels."""
        return ""

    @property
    def has_feature_loss(self) -> bool:
        """Whether the stage records a feature loss of each block, which a later stage can read."""
        return False

    @property
    def inserts_predictors(self) -> bool:
        """Whether the stage adds token predictors, which a later stage must train."""
        return False

    @property
    def trains_predictors(self) -> bool:
        """Whether the stage trains token predictors towards the fractions of tokens that they keep."""
        return False

    @property
    def needs_measured_backend(self) -> str:
        """The key that needs a measured backend that runs ONNX files; empty if there is none."""
        return ""

    @property
    def needs_labels(self) -> str:
        """The reason that the stage needs a model with classes; empty if it does not."""
        return ""

    @property
    def advice_if_slower(self) -> str:
        """Reason and remedy for a model that this stage makes slower, as the end of a warning; empty for none."""
        return ""

    def work(self, images: ImageCounts) -> Work:
        """Return the work of the stage, for an estimate of its duration; by default that of its training."""
        return Work() if self.training is None else self.training.work(images)

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:  # noqa: ARG002
        """Yield contradictions among the keys, given the stages before and after. `where` is relative to the stage."""
        yield from ()

    def warnings(self) -> Iterator[Problem]:
        """Yield advice on keys that are legal but seldom useful. `where` is relative to the stage."""
        yield from ()


def names_of(stages: Sequence[StageConfig]) -> list[str]:
    """Return the names by which later stages can refer to these stages: own names and kinds, without repeats."""
    return list(dict.fromkeys(name for config in stages for name in (config.name, config.kind) if name))


def method_of(config: type[StageConfig]) -> str:
    """Return the name of a method, as recipes write it."""
    return str(get_args(config.model_fields["method"].annotation)[0])
