"""Which recipes make sense: the order of stages (rules O1 to O7 of the specs) and what entries say of each other.

Everything here needs only the recipe. What needs the model is asked of each stage when a plan is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from vitslim.errors import Problem, closest
from vitslim.recipe.backend_names import wrong_backends
from vitslim.recipe.catalog import PACKAGE
from vitslim.recipe.quantize_keys import contradictions
from vitslim.recipe.schema import Recipe, kind_of
from vitslim.recipe.stages import (
    KINDS,
    QUANTIZE,
    AnyStage,
    Budget,
    DepGraph,
    Distill,
    Etps,
    Export,
    Layers,
    Qat,
    TwoFour,
    Unstructured,
)
from vitslim.recipe.teaching import Taught

TEACHERS = ("none", "previous", "dense")
"""Teachers that are no stage of the recipe."""

UNUSED_KEYS = {"lamp": ("normalization",), "random": ("reduction", "normalization")}
"""Importance to the keys of depgraph that it does not look at."""

STRUCTURAL = (DepGraph, Layers)
"""Stages after which there are fewer weights."""

MASKS = (TwoFour, Unstructured)
"""Stages that choose weights which stay zero from then on."""

VALIDATION_SET = "val"

RESERVED_KWARGS = (
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "scriptable",
)
"""Arguments of timm.create_model that fetch or unpickle something, or that vitslim sets."""


def check_order(recipe: Recipe) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings of a recipe whose values are valid. A recipe with errors must not run."""
    errors = chain(
        _export(recipe.stages),
        _order(recipe.stages),
        _squeezed_twice(recipe.stages),
        _names(recipe.stages),
        _teachers(recipe.stages),
        _losses(recipe.stages),
        _prunings(recipe.stages),
        _quantizers(recipe.stages),
        _files(recipe),
        wrong_backends(recipe.report.backends, recipe.gates.speedup_min),
    )
    return list(errors), list(_warnings(recipe))


def _where(position: int, config: AnyStage, key: str = "") -> str:
    where = f"stages.{position}.{kind_of(config)}"
    return f"{where}.{key}" if key else where


def _export(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    exports = [position for position, config in enumerate(stages) if isinstance(config, Export)]
    if not exports:
        yield Problem("stages", "there is no export stage: nothing would come out", "add `- export` as the last stage")
    for position in exports[1:]:
        yield Problem(_where(position, stages[position]), "a second export stage", "leave one, as the last stage")
    if exports and exports[-1] != len(stages) - 1:
        after = stages[exports[-1] + 1]
        message = f"export must be the last stage, {kind_of(after)} comes after it"
        yield Problem(_where(exports[-1], stages[exports[-1]]), message, "move `- export` to the end")


def _order(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    """O1, O2 and O3: prune structure, then mask weights, then train, then quantize."""
    for position, config in enumerate(stages):
        before, where = stages[:position], _where(position, config)
        masked = next((c.method for c in before if isinstance(c, MASKS)), "")
        quantized = any(isinstance(c, QUANTIZE) for c in before)
        if isinstance(config, STRUCTURAL) and quantized:
            yield Problem(where, f"{_words(config)} after quantize (rule O1): scales and ranges would no longer fit",
                          "move it before quantize")  # fmt: skip
        elif isinstance(config, STRUCTURAL) and masked:
            harm = "it would break the groups of four" if masked == "two-four" else "the sparsity would no longer hold"
            yield Problem(where, f"{_words(config)} after {masked} (rule O1): {harm}", f"move it before {masked}")
        if isinstance(config, MASKS) and masked:
            message = f"a second mask, {config.method} after {masked} (rule O2): the mask is chosen once"
            yield Problem(where, message, "leave one of them")
        if isinstance(config, MASKS) and quantized:
            message = f"{config.method} after quantize (rule O3): quantization must see the sparse weights"
            yield Problem(where, message, "move it before quantize")
        if isinstance(config, Distill) and quantized:
            yield Problem(where, "distill after quantize (rule O3): it trains in floating point, away from the scales "
                          "that calibration fixed", "move it before quantize")  # fmt: skip
        if isinstance(config, QUANTIZE) and quantized:
            yield Problem(where, "a second quantize stage: the weights are integers already", "leave one of them")
        if isinstance(config, Etps) and any(isinstance(c, Layers) and c.unit == "branch" for c in before):
            yield Problem(where, "token-squeeze after layers with `unit: branch`: a block may have lost the attention "
                          "that chooses tokens", "squeeze tokens first, or remove whole blocks")  # fmt: skip


def _words(config: AnyStage) -> str:
    return "removing layers" if isinstance(config, Layers) else "structural pruning"


def _squeezed_twice(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    owner: dict[int, int] = {}
    for position, config in enumerate(stages):
        for block in config.blocks if isinstance(config, Etps) else ():
            if block in owner:
                place = "this stage" if owner[block] == position else f"stages.{owner[block]}"
                message = f"block {block} is squeezed by {place} already"
                yield Problem(_where(position, config, "blocks"), message, "name each block once")
            owner.setdefault(block, position)


def _names(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    owner: dict[str, int] = {}
    for position, config in enumerate(stages):
        if config.name is None:
            continue
        where = _where(position, config, "name")
        if config.name in TEACHERS or config.name in KINDS:
            yield Problem(where, f"'{config.name}' means something else already", "choose another name")
        elif config.name in owner:
            yield Problem(
                where, f"'{config.name}' is the name of stages.{owner[config.name]} too", "choose another name"
            )
        owner.setdefault(config.name, position)


def _teachers(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    for position, config in enumerate(stages):
        if not isinstance(config, Taught):
            continue
        where = _where(position, config, "teacher")
        if not isinstance(config.teacher, str):
            if (config.teacher.checkpoint or "").startswith(PACKAGE):
                message = f"'{PACKAGE}' names weights for model.checkpoint only"
                yield Problem(f"{where}.checkpoint", message, "give the path of a safetensors file")
            continue
        earlier = _callable(stages[:position])
        if config.teacher in (*TEACHERS, *earlier):
            continue
        if config.teacher in _callable(stages[position:]):
            message = f"the stage '{config.teacher}' does not come before this one"
            yield Problem(where, message, f"allowed: {', '.join((*TEACHERS, *earlier))}")
        else:
            message = f"got '{config.teacher}', expected the name of an earlier stage, or none, previous or dense"
            yield Problem(where, message, closest(config.teacher, (*TEACHERS, *earlier)))


def _callable(stages: tuple[AnyStage, ...]) -> list[str]:
    """What stages can be called: by name, and by kind."""
    return list(dict.fromkeys(name for config in stages for name in (config.name, kind_of(config)) if name))


def _losses(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    for position, config in enumerate(stages):
        if not isinstance(config, Taught):
            continue
        loss, taught = config.loss, config.teacher != "none"
        if loss.hard == 0 and (loss.soft == loss.feature == 0 or not taught):
            message = "nothing to learn from: no term of the loss has both a weight and a source"
            hint = "`hard` needs no teacher, `soft` and `feature` need one"
            yield Problem(_where(position, config, "loss"), message, hint)
        elif config.labels == "teacher" and not taught:
            message = "the teacher's predictions as labels, and no teacher"
            yield Problem(_where(position, config, "labels"), message, "name a teacher, such as dense")
        if isinstance(config, Qat) and config.feature_weight is not None:
            yield from _feature_weight(config.feature_weight.stage, loss.feature, stages[:position],
                                       _where(position, config, "feature_weight"))  # fmt: skip


def _feature_weight(stage: str, weight: float, before: tuple[AnyStage, ...], where: str) -> Iterator[Problem]:
    teaching = _callable(tuple(c for c in before if isinstance(c, Taught) and c.loss.feature > 0))
    if weight == 0:
        yield Problem(where, "weights of a feature loss that is switched off", "set loss.feature above zero")
    elif stage not in teaching:
        message = f"no stage '{stage}' with a feature loss comes before this one"
        yield Problem(f"{where}.stage", message, closest(stage, teaching))


def _prunings(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    for position, config in enumerate(stages):
        if isinstance(config, DepGraph):
            yield from _contradictions(config, position)
            if config.budget is not None:
                yield from _budget(config.budget, _where(position, config, "budget"))


def _contradictions(config: DepGraph, position: int) -> Iterator[Problem]:
    """Keys of which one makes the other meaningless."""
    if config.mode == "bottleneck" and config.ratios.embedding is not None:
        message = "mode 'bottleneck' leaves the embedding as it is"
        yield Problem(_where(position, config, "ratios.embedding"), message, "leave it out, or use mode 'uniform'")
    for key in UNUSED_KEYS.get(config.importance, ()):
        if getattr(config, key) != "mean":
            message = f"importance '{config.importance}' has no use for {key}"
            yield Problem(_where(position, config, key), message, "leave it out")


def _budget(budget: Budget, where: str) -> Iterator[Problem]:
    given = [key for key in ("macs", "params", "latency") if getattr(budget, key) is not None]
    if len(given) != 1:
        message = f"got {' and '.join(given) or 'none of them'}, expected exactly one of macs, params and latency"
        yield Problem(where, message, f"leave one: {given[0]}" if given else "for example {macs: 0.7}")
    if budget.latency is not None and budget.table is None:
        message = "a latency budget needs a latency table"
        yield Problem(f"{where}.table", message, "`vitslim bench --table FILE` writes one")
    if budget.table is not None and budget.latency is None:
        yield Problem(f"{where}.table", "a latency table without a latency budget", "add latency, or leave it out")


def _quantizers(stages: tuple[AnyStage, ...]) -> Iterator[Problem]:
    portable = any(isinstance(config, Export) and config.profile == "portable" for config in stages)
    for position, config in enumerate(stages):
        for key, message, hint in contradictions(config, portable) if isinstance(config, QUANTIZE) else ():
            yield Problem(_where(position, config, key), message, hint)


def _files(recipe: Recipe) -> Iterator[Problem]:
    data, checkpoint = recipe.data, recipe.model.checkpoint or ""
    for key in recipe.model.kwargs:
        if key in RESERVED_KWARGS:
            message = "not an argument that a recipe can set: weights come from model.checkpoint"
            yield Problem(f"model.kwargs.{key}", message, "--set model.checkpoint=FILE")
    name = checkpoint.removeprefix(PACKAGE)
    if checkpoint.startswith(PACKAGE) and (not name or "/" in name or "\\" in name or name.startswith(".")):
        message = f"got '{checkpoint}', expected {PACKAGE}NAME, a file that ships with vitslim"
        yield Problem("model.checkpoint", message, "a path is written without the prefix")
    if data.kind == "digits" and data.root is not None:
        yield Problem("data.root", "the digits come with vitslim and have no folder", "use data.kind imagefolder")
    if data.kind == "digits" and data.also_evaluate:
        yield Problem("data.also_evaluate", "the digits have no further folders", "use data.kind imagefolder")
    if VALIDATION_SET in data.also_evaluate:
        where = f"data.also_evaluate.{VALIDATION_SET}"
        yield Problem(where, f"'{VALIDATION_SET}' is the validation set of data.root", "choose another name")


def _warnings(recipe: Recipe) -> Iterator[Problem]:
    for position, config in enumerate(recipe.stages):
        before = recipe.stages[:position]
        if isinstance(config, Etps) and any(isinstance(c, QUANTIZE) for c in before):
            where = _where(position, config)
            message = f"{where}: token-squeeze after quantize (rule O6): ranges were calibrated on tokens that now go"
            yield Problem(where, message, "token-squeeze before quantize usually loses less accuracy")
        if isinstance(config, Unstructured):
            where = _where(position, config)
            message = f"{where}: unstructured zeros make nothing faster: dense kernels multiply by them all the same"
            yield Problem(where, message, "the stage reports the size in CSR; depgraph and layers save time")
    if recipe.model.checkpoint is None:
        message = "model.checkpoint is not set: the model starts from random weights"
        yield Problem("model.checkpoint", message, "--set model.checkpoint=FILE")
