"""Checks of whole recipes: the order of phases, the names of stages, and the problems that each stage config reports.

Everything here needs only the recipe. Problems that depend on the model are reported by each stage when a plan is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from vitslim.errors import Problem
from vitslim.recipe.backend_names import RUN_ONNX, wrong_backends
from vitslim.recipe.document.check import shown
from vitslim.recipe.gates import Gates, parse_setting, setting_problems
from vitslim.recipe.schema import HUB, HUB_ROOT, Data, Recipe
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.stages import Export, kinds
from vitslim.recipe.stages.training import PACKAGE, TEACHERS
from vitslim.recipe.task_rules import model_task_problems, stated_task, states_maps, task_problems

FORBIDDEN: dict[tuple[Phase, Phase], str] = {
    (Phase.MASK, Phase.STRUCTURE): "removing channels would break the pattern of the mask",
    (Phase.MASK, Phase.MASK): "a model has at most one mask",
    (Phase.PRECISION, Phase.STRUCTURE): "it changes the ranges that calibration measured",
    (Phase.PRECISION, Phase.MASK): "calibration must see the sparse weights",
    (Phase.PRECISION, Phase.TRAIN): "it trains in floating point, without the scales that calibration found",
    (Phase.PRECISION, Phase.PRECISION): "the weights are already integers",
}
"""Earlier phase and later phase that must not follow it, with the reason. Everything else is allowed."""

DISCOURAGED: dict[tuple[Phase, Phase], str] = {
    (Phase.PRECISION, Phase.TOKENS): "calibration included the tokens that this stage removes",
}
"""The same for orders that only give a warning."""

VALIDATION_SET = "val"

RESERVED_KWARGS = (
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "scriptable",
)
"""Arguments of timm.create_model that download or unpickle something, or that vitslim sets."""


def check_order(recipe: Recipe) -> tuple[list[Problem], list[Problem]]:
    """Return the errors and the warnings of a recipe whose values are valid. A recipe with errors must not run."""
    stages = recipe.stages
    errors = chain(
        _export_problems(stages),
        _order_problems(stages),
        _name_problems(stages),
        _stage_problems(stages),
        _measuring_problems(recipe),
        _batch_problems(recipe),
        _file_problems(recipe),
        _task_problems(recipe),
        wrong_backends(recipe.report.backends, _gated(recipe.gates)),
        setting_problems(recipe.gates, recipe.report.batches, recipe.report.threads, recipe.report.memory),
    )
    return list(errors), list(_warnings(recipe))


def _gated(gates: Gates) -> Iterator[tuple[str, str]]:
    """Yield the path and the backend of each gate of backends."""
    for gate, limits in gates.of_backends.items():
        yield from ((f"gates.{gate}.{key}", parse_setting(key).backend) for key in limits)


def _path(position: int, config: StageConfig, key: str = "") -> str:
    path = f"stages.{position}.{config.kind}"
    return f"{path}.{key}" if key else path


def _export_problems(stages: tuple[StageConfig, ...]) -> Iterator[Problem]:
    exports = [position for position, config in enumerate(stages) if config.phase is Phase.EXPORT]
    if not exports:
        yield Problem(
            "stages", "there is no export stage, so the run would write no model", "add `- export` at the end"
        )
    for position in exports[1:]:
        yield Problem(
            _path(position, stages[position]), "there is a second export stage", "keep one, as the last stage"
        )
    if exports and exports[-1] != len(stages) - 1:
        message = f"export must be the last stage, but {stages[exports[-1] + 1].kind} comes after it"
        yield Problem(_path(exports[-1], stages[exports[-1]]), message, "move `- export` to the end")


def _order_problems(stages: tuple[StageConfig, ...]) -> Iterator[Problem]:
    """Yield one problem for each stage that follows a phase it must not follow."""
    for position, config in enumerate(stages):
        pair = _first_pair(FORBIDDEN, stages[:position], config)
        if pair is None:
            continue
        earlier, reason = pair
        if earlier.phase is config.phase:
            message = f"{config.method} comes after {earlier.method}: {reason}"
            yield Problem(_path(position, config), message, "keep one of the two stages")
        else:
            attribute = "method" if earlier.kind == config.kind else "kind"
            this, other = getattr(config, attribute), getattr(earlier, attribute)
            message = f"{config.phase.value} must come before {other}: {reason}"
            yield Problem(_path(position, config), message, f"move `{this}` before `{other}`")


def _first_pair(
    table: dict[tuple[Phase, Phase], str], before: tuple[StageConfig, ...], config: StageConfig
) -> tuple[StageConfig, str] | None:
    """Return the first earlier stage that the table relates to this one, with the reason."""
    found = ((earlier, table.get((earlier.phase, config.phase))) for earlier in reversed(before))
    return next(((earlier, reason) for earlier, reason in found if reason is not None), None)


def _name_problems(stages: tuple[StageConfig, ...]) -> Iterator[Problem]:
    owner: dict[str, int] = {}
    for position, config in enumerate(stages):
        if config.name is None:
            continue
        path = _path(position, config, "name")
        if config.name in TEACHERS or config.name in kinds():
            yield Problem(path, f"'{config.name}' is a reserved name", "choose another name")
        elif config.name in owner:
            message = f"'{config.name}' is already the name of stages.{owner[config.name]}"
            yield Problem(path, message, "choose another name")
        owner.setdefault(config.name, position)


def _stage_problems(stages: tuple[StageConfig, ...]) -> Iterator[Problem]:
    for position, config in enumerate(stages):
        for problem in config.problems(stages[:position], stages[position + 1 :]):
            yield Problem(_path(position, config, problem.where), problem.message, problem.hint)


def _measuring_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem for each stage that measures candidates without a backend that runs ONNX files."""
    if any(backend in RUN_ONNX for backend in recipe.report.backends):
        return
    for position, config in enumerate(recipe.stages):
        if key := config.needs_measured_backend:
            message = f"`{key}: {getattr(config, key)}` needs a measured backend that runs ONNX files"
            yield Problem(_path(position, config, key), message, f"add `{RUN_ONNX[0]}` to `report.backends`")


def _batch_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem if the report measures batch sizes that the exported file does not take."""
    batch = next((config.form.batch for config in recipe.stages if isinstance(config, Export)), None)
    other = [size for size in recipe.report.batches if batch not in (None, size)]
    if other and recipe.report.backends:
        message = f"the exported file takes `batch: {batch}` only, got {list(recipe.report.batches)}"
        yield Problem(
            "report.batches", message, f"set `report.batches: [{batch}]`, or `batch: dynamic` in the export stage"
        )


def _file_problems(recipe: Recipe) -> Iterator[Problem]:
    data, checkpoint = recipe.data, recipe.model.checkpoint or ""
    if recipe.model.timm is not None and recipe.model.revit is not None:
        yield Problem("model.revit", "got `timm` and `revit`, expected one of them", "remove one of the two keys")
    if recipe.model.revit is not None and checkpoint:
        yield Problem("model.checkpoint", "a `revit` starts from random weights", "remove `model.checkpoint`")
    for key in recipe.model.kwargs:
        if key in RESERVED_KWARGS:
            message = "a recipe cannot set this argument: weights come from model.checkpoint"
            yield Problem(f"model.kwargs.{key}", message, "--set model.checkpoint=FILE")
    name = checkpoint.removeprefix(PACKAGE)
    if checkpoint.startswith(PACKAGE) and (not name or "/" in name or "\\" in name or name.startswith(".")):
        message = f"got '{checkpoint}', expected {PACKAGE}NAME, a file that ships with vitslim"
        yield Problem("model.checkpoint", message, "write a path without the prefix")
    if data.kind == "digits" and data.root is not None:
        yield Problem("data.root", "the digits ship with vitslim and have no folder", "use `data.kind: imagefolder`")
    if data.kind == "digits" and data.also_evaluate:
        yield Problem("data.also_evaluate", "the digits have no further data sets", "use `data.kind: imagefolder`")
    if data.kind == "digits" and (keys := recipe.model.preprocessing.values().keys() - {"input_size"}):
        message = "the digits have a mean and a standard deviation of their own, and are not cropped"
        yield Problem(f"model.preprocessing.{min(keys)}", message, "remove the key, or use `data.kind: imagefolder`")
    if data.kind == "digits" and data.val_fraction is not None:
        yield Problem("data.val_fraction", "the digits have a validation set", "remove `data.val_fraction`")
    yield from _kind_problems(data)
    if VALIDATION_SET in data.also_evaluate:
        path = f"data.also_evaluate.{VALIDATION_SET}"
        yield Problem(
            path, f"'{VALIDATION_SET}' is reserved for the validation set of data.root", "choose another name"
        )


def _kind_problems(data: Data) -> Iterator[Problem]:
    """Yield problems of keys that only some kinds of data have."""
    if data.label_field is not None and data.kind not in ("webdataset", "huggingface"):
        message = f"`kind: {data.kind}` has no fields that hold labels"
        yield Problem("data.label_field", message, "remove the key, or use `kind: webdataset` or `huggingface`")
    roots = {"root": data.root or ""} | {f"also_evaluate.{name}": root for name, root in data.also_evaluate.items()}
    for key, root in roots.items():
        if root.startswith(HUB) and data.kind != "huggingface":
            yield Problem(f"data.{key}", f"`kind: {data.kind}` is not read from the hub", "use `kind: huggingface`")
        elif root.startswith(HUB) and HUB_ROOT.fullmatch(root) is None:
            yield Problem(
                f"data.{key}",
                f"got {shown(root)}, expected {HUB}ORG/NAME or {HUB}ORG/NAME@REVISION",
                "copy ORG/NAME from the hub",
            )


def _task_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield problems of the task, as far as the recipe states it."""
    found = list(model_task_problems(recipe.model))
    task = stated_task(recipe.model)
    if found or task is None:
        yield from found
    else:
        yield from task_problems(recipe, task, states_maps(recipe.model))


def _warnings(recipe: Recipe) -> Iterator[Problem]:
    for position, config in enumerate(recipe.stages):
        path = _path(position, config)
        pair = _first_pair(DISCOURAGED, recipe.stages[:position], config)
        if pair is not None:
            message = f"{path}: {config.phase.value} after {pair[0].kind}: {pair[1]}"
            yield Problem(path, message, f"{config.kind} before {pair[0].kind} usually keeps more accuracy")
        for problem in config.warnings():
            yield Problem(path, f"{path}: {problem.message}", problem.hint)
    if recipe.model.checkpoint is None:
        message = "model.checkpoint is not set: the model starts from random weights"
        yield Problem("model.checkpoint", message, "--set model.checkpoint=FILE")
