"""Keys of training, with and without a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from vitslim.errors import Problem, closest
from vitslim.recipe.config import ASSUMED, Config, TimmName
from vitslim.recipe.preprocessing import PreprocessingConfig
from vitslim.recipe.stage_config import Phase, StageConfig, names_of
from vitslim.recipe.train import Train
from vitslim.recipe.work import ImageCounts, Work

NO_TEACHER = "none"
TEACHERS = (NO_TEACHER, "previous", "dense")
"""Teachers that are not a stage of the recipe."""

PACKAGE = "package:"
"""Prefix of a file that ships with vitslim."""


class TeacherModel(Config):
    """A teacher that is another timm model."""

    timm: TimmName = Field(description="name of the timm model")
    checkpoint: str | None = Field(
        None, description="weights, in any format of `model.checkpoint`; without it they are random"
    )
    kwargs: dict[str, int | float | str | bool] = Field({}, description="arguments of timm.create_model")
    preprocessing: PreprocessingConfig = PreprocessingConfig()


Teacher = str | TeacherModel
"""`none`, `previous`, `dense`, the name of an earlier stage, or another timm model."""
Teachers = Teacher | Annotated[tuple[Teacher, ...], Field(min_length=1)]
"""One teacher, or a list of two."""

TEACHER_WORDS = (
    "model whose outputs the student learns: none, dense, previous (the model before this stage), the name of an "
    "earlier stage, or {timm: NAME, checkpoint: FILE}, whose image size and normalization may differ from the "
    "student's. A list of two teachers averages their predicted probabilities; features are those of the first"
)
TEACHERS_MAX = 2


class Loss(Config):
    """Weights of the distillation terms; a term of weight zero is not computed."""

    hard: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="cross-entropy with the labels; with several labels, binary cross-entropy. Feature "
        "extractors have none: their default is 0",
    )
    soft: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="KL divergence from the teacher's predictions; for feature extractors, squared distance from the "
        "teacher's outputs, relative to their squared norm",
    )
    feature: Annotated[float, Field(ge=0)] = Field(
        0.0, description="mean squared distance from the teacher's block outputs"
    )
    ratio: Annotated[float, Field(ge=0)] = Field(
        0.0, description="squared distance of the fraction of tokens that predictors keep from their keep rate"
    )
    token: Annotated[float, Field(ge=0)] = Field(
        0.0, description="KL divergence from the teacher's features of the tokens that predictors keep to the end"
    )


class Features(Config):
    """Block outputs that the feature loss compares, and the images that it includes (GPUSQ)."""

    blocks: Literal["last_third", "all"] | tuple[str, ...] = Field(
        "last_third",
        json_schema_extra={ASSUMED: True},
        description="last_third, all, or names of blocks such as blocks.11",
    )
    only_agreeing: bool = Field(
        True, description="include only images on which teacher and student predict the same class"
    )


class TrainedWithTeacher(StageConfig):
    """Keys of stages that train with a teacher."""

    phase: ClassVar[Phase] = Phase.TRAIN

    teacher: Teachers = Field("dense", description=TEACHER_WORDS)
    loss: Loss = Loss()
    labels: Literal["dataset", "teacher"] = Field(
        "dataset", description="target of the hard loss. teacher: its predicted classes, so that images need no labels"
    )
    label_teacher: TeacherModel | None = Field(
        None,
        description="another timm model, whose predicted classes are half of the hard target (hard distillation of "
        "DeiT); default: none",
    )
    temperature: PositiveFloat = Field(
        1.0, description="softmax temperature of the soft loss", json_schema_extra={ASSUMED: True}
    )
    features: Features = Features()
    train: Train = Train()

    @property
    def training(self) -> Train:
        """The training schedule of the stage."""
        return self.train

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The teachers in the order of the recipe; empty for `none`."""
        if self.teacher == NO_TEACHER:
            return ()
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)

    def work(self, images: ImageCounts) -> Work:
        """Return the work of training and of the teachers, which count as models of the size of the student."""
        own = self.train.work(images)
        teachers = (len(self.teachers) if self.needs_teacher else 0) + (self.label_teacher is not None)
        # Outputs of images that are the same in every epoch are computed once.
        keeps_outputs = self.train.augment == "none" and not self.train.has_mixing and not self.has_feature_loss
        passes = teachers * own.training / (self.train.epochs if keeps_outputs else 1)
        is_timm = any(isinstance(one, TeacherModel) for one in (*self.teachers, self.label_teacher))
        return own + (Work(forward=passes) if is_timm or self.has_feature_loss else Work(runtime=passes))

    @property
    def has_feature_loss(self) -> bool:
        """Whether the stage records a feature loss of each block, which a later stage can read."""
        return self.loss.feature > 0

    @property
    def uses_training_form(self) -> bool:
        """Whether the stage trains token predictors by the training form of the model."""
        return False

    @property
    def reads_labels(self) -> str:
        """The reason that the stage reads the labels of training images; empty if it does not."""
        if self.loss.hard > 0 and self.labels == "dataset":
            return f"`loss.hard: {self.loss.hard:g}` is the cross-entropy with them"
        return "`train.mixup` and `train.cutmix` blend them" if self.train.has_mixing else ""

    @property
    def labels_hint(self) -> str:
        """How to run the stage without labels."""
        return "set `labels: teacher` or `loss.hard: 0`, without `train.mixup` and `train.cutmix`"

    @property
    def needs_teacher(self) -> bool:
        """Whether a term of the loss with a weight above zero uses the teacher."""
        if self.teacher == NO_TEACHER:
            return False
        loss = self.loss
        return max(loss.soft, loss.feature, loss.token) > 0 or (loss.hard > 0 and self.labels == "teacher")

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield contradictions among the keys, an unknown teacher among them."""
        yield from super().problems(before, after)
        yield from self._problems_of_teachers(before, after)
        yield from self._loss_problems()
        yield from self._predictor_problems(before)
        for problem in self.train.problems():
            yield Problem(f"train.{problem.where}", problem.message, problem.hint)

    def _problems_of_teachers(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        if not isinstance(self.teacher, tuple):
            yield from _teacher_problems(self.teacher, "teacher", before, (self, *after))
            return
        if len(self.teacher) > TEACHERS_MAX:
            message = f"got a list of {len(self.teacher)} teachers, expected at most {TEACHERS_MAX}"
            yield Problem("teacher", message, "remove some of them")
        for position, teacher in enumerate(self.teacher):
            if teacher in (NO_TEACHER, *self.teacher[:position]):
                message = "a list of teachers must name each teacher once, and cannot contain none"
                yield Problem(f"teacher.{position}", message, "remove this entry")
            else:
                yield from _teacher_problems(teacher, f"teacher.{position}", before, (self, *after))

    def _loss_problems(self) -> Iterator[Problem]:
        loss, is_alone = self.loss, self.teacher == NO_TEACHER
        if loss.hard == 0 and (is_alone or loss.soft == loss.feature == loss.token == 0):
            message = "every term of the loss has weight zero" + (" or needs a teacher" if is_alone else "")
            yield Problem("loss", message, "set `hard` above zero, or name a teacher and set `soft` or `feature`")
        elif self.label_teacher is not None and loss.hard == 0:
            yield Problem("label_teacher", "`label_teacher` is a part of the hard loss", "set `loss.hard` above zero")
        elif self.labels == "teacher" and is_alone:
            yield Problem("labels", "`labels: teacher` needs a teacher", "set `teacher: dense`")

    def _predictor_problems(self, before: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield problems of the terms that need predictors, and of those that predictors exclude."""
        terms = [name for name in ("ratio", "token") if getattr(self.loss, name) > 0]
        has_predictors = any(config.inserts_predictors for config in before)
        for name in terms if not self.uses_training_form else ():
            message = f"{self.kind} trains the model as it is deployed, where no gradient reaches predictors"
            yield Problem(f"loss.{name}", message, "set it to 0, and train the predictors in a `distill` stage before")
        for name in terms if self.uses_training_form and not has_predictors else ():
            message = "no earlier stage adds token predictors"
            yield Problem(f"loss.{name}", message, "set it to 0, or add `token-squeeze: {method: dtps}` before")
        if self.loss.token > 0 and self.teacher == NO_TEACHER:
            yield Problem("loss.token", "`loss.token` needs a teacher", "set `teacher: dense`")
        if self.loss.feature > 0 and self.uses_training_form and has_predictors:
            message = "block outputs of a model with token predictors have dropped tokens"
            yield Problem("loss.feature", message, "set it to 0; `loss.token` compares the kept tokens")


def _teacher_problems(
    teacher: Teacher, where: str, before: Sequence[StageConfig], after: Sequence[StageConfig]
) -> Iterator[Problem]:
    """Yield problems of one teacher; `after` begins with the stage itself."""
    if not isinstance(teacher, str):
        if (teacher.checkpoint or "").startswith(PACKAGE):
            message = f"got '{teacher.checkpoint}', but '{PACKAGE}' is allowed in model.checkpoint only"
            yield Problem(f"{where}.checkpoint", message, "give the path of a checkpoint")
        return
    allowed = (*TEACHERS, *names_of(before))
    if teacher in allowed:
        return
    if teacher in names_of(after):
        message = f"the stage '{teacher}' does not come before this one"
        yield Problem(where, message, f"allowed: {', '.join(allowed)}")
    else:
        message = f"got '{teacher}', expected the name of an earlier stage, or none, previous or dense"
        yield Problem(where, message, closest(teacher, allowed))


class FeatureWeight(Config):
    """Weights of n blocks in the feature loss: n * softmax(sign * L / tau) of an earlier stage's final losses L."""

    stage: str = Field("distill", description="the stage whose feature losses are read")
    sign: Literal[-1, 1] = Field(
        -1,
        description="-1: larger weights for blocks with a small loss; 1: for blocks with a large loss",
        json_schema_extra={ASSUMED: True},
    )
    tau: PositiveFloat = Field(
        1.0, description="temperature; larger values make the weights more equal", json_schema_extra={ASSUMED: True}
    )

    def problems(self, feature: float, before: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield problems given the weight of the feature loss and the stages before; `where` is relative to the key."""
        sources = names_of([config for config in before if config.has_feature_loss])
        if feature == 0:
            yield Problem(
                "",
                "the feature loss has weight zero, so the weights of its blocks have no effect",
                "set `loss.feature`",
            )
        elif self.stage not in sources:
            message = f"no stage '{self.stage}' with a feature loss comes before this one"
            yield Problem(
                "stage", message, closest(self.stage, sources) if sources else "set `loss.feature` in an earlier stage"
            )
