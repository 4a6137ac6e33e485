"""Trace a timm model: build it, load the checkpoint, export it with a dynamic batch, normalize the graph."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from torch.export import Dim, export
from torch.nn.modules.module import register_module_module_registration_hook

from vitslim.errors import InputError, UsageError
from vitslim.graph.model_graph import ModelGraph, ModelSource
from vitslim.graph.outputs import name_outputs, output_list
from vitslim.graph.trace.checkpoint import read_weights
from vitslim.graph.trace.checkpoint.fit import Weights, adaptations, mismatch, with_arguments
from vitslim.graph.trace.model_input import resolve_input
from vitslim.graph.trace.normalize import normalize
from vitslim.host_memory import require_memory
from vitslim.recipe.hub_folder import HubFolder, read_hub_folder
from vitslim.tasks import Task

RESERVED = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments of timm.create_model that would load weights without the checks made here."""

EXAMPLE_BATCH = 2
"""torch.export specializes batch sizes 0 and 1, so the example has two images."""


MODULES_MAX = 10_000
"""Modules of a model; ResNeSt-269, one of the largest of timm, has 1,818."""

UNFIT = (RuntimeError, KeyError, IndexError, ValueError, AttributeError, TypeError, AssertionError, OverflowError)
"""Exceptions of timm's loaders and checkpoint filters for weights of another model."""


BACKBONE = ("features_only", "out_indices")
"""Arguments of timm.create_model that turn a model into a backbone, whose outputs are maps."""


def trace_timm(
    timm_name: str,
    kwargs: dict[str, Any],
    checkpoint: Path | None = None,
    seed: int = 0,
    entry: str | None = None,
    task: Task | None = None,
    preprocessing: Mapping[str, Any] = MappingProxyType({}),
) -> ModelGraph:
    """Return the exported graph of a timm model in evaluation mode; its outputs equal the model's bit for bit.

    `kwargs` go to `timm.create_model`. Without a checkpoint the weights are random, from `seed`. Weights are never
    downloaded. `entry` names the state dict of a checkpoint that has several. Unless `kwargs` set `num_classes`, it is
    that of the checkpoint. `task`: None for `classify` or, without a classifier, `features`. `preprocessing` overrides
    values of the model's own, by the keys of `PreprocessingConfig`. Raises UsageError for an unknown name, arguments
    that the model does not take, or a task that is not the model's, InputError for a checkpoint that cannot be read or
    does not fit, and for a model that torch.export cannot trace.
    """
    model, source = load_timm(timm_name, kwargs, checkpoint, seed, entry, task, preprocessing)
    example = torch.zeros(EXAMPLE_BATCH, *source.image)
    try:
        exported = export(model, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torch.export cannot trace '{timm_name}': {_first_line(error)}") from error
    module = normalize(exported.module())
    module.eval()
    return ModelGraph(module, source)


def load_timm(
    timm_name: str,
    kwargs: dict[str, Any],
    checkpoint: Path | None = None,
    seed: int = 0,
    entry: str | None = None,
    task: Task | None = None,
    preprocessing: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[torch.nn.Module, ModelSource]:
    """Return a timm model in evaluation mode before it is traced, and its source; see `trace_timm`."""
    hub = read_hub_folder(checkpoint) if checkpoint is not None and checkpoint.is_dir() else None
    if hub is not None:
        checkpoint, kwargs = hub.weights, _hub_arguments(hub, timm_name, kwargs)
    _check_arguments(timm_name, kwargs)
    _check_size(timm_name, kwargs)
    model = _build(timm_name, kwargs, seed)
    adapted: tuple[str, ...] = ()
    if checkpoint is not None:
        arguments = _without_maps(kwargs)
        whole = model if arguments == kwargs else _build(timm_name, arguments, seed)
        model, kwargs, adapted = _load(whole, timm_name, kwargs, read_weights(whole, checkpoint, entry))
    image, values = resolve_input(model, kwargs, hub.preprocessing if hub else {}, preprocessing)
    with torch.no_grad():
        outputs = _example_outputs(model, torch.zeros(EXAMPLE_BATCH, *image), timm_name)
    found = _task(model, outputs, task, timm_name)
    classes = 0 if found == "features" else outputs[0].shape[1]
    named = name_outputs(found, outputs)
    source = ModelSource(timm_name, dict(kwargs), image, classes, values, weights=adapted, task=found, outputs=named)
    return model, source


def _load(
    model: torch.nn.Module, timm_name: str, kwargs: dict[str, Any], weights: Weights
) -> tuple[torch.nn.Module, dict[str, Any], tuple[str, ...]]:
    """Return the model with weights, its arguments, and a sentence on each step that made the weights fit.

    model: without the arguments that make it a backbone. timm loads them: it resizes position embeddings and adapts the
    first convolution to other image channels.
    """
    whole, weights = with_arguments(weights, model, _without_maps(kwargs))
    maps = {key: kwargs[key] for key in BACKBONE if key in kwargs}
    input_size = model.pretrained_cfg["input_size"]  # type: ignore[index]  # a dict
    overlay = weights.overlay | {
        "input_size": (weights.channels or input_size[0], *input_size[1:]),
        # Otherwise timm would leave the head random.
        "num_classes": whole.get("num_classes", model.num_classes),
    }
    try:
        with torch.random.fork_rng(devices=[]):
            loaded: torch.nn.Module = timm.create_model(
                timm_name, pretrained=True, pretrained_cfg_overlay=overlay, **whole, **maps
            )
    except UNFIT as error:
        raise mismatch(weights, _build(timm_name, whole, 0), timm_name) from error
    loaded.pretrained_cfg = loaded.default_cfg = model.pretrained_cfg  # without the tensors
    notes = adaptations(weights, _build(timm_name, whole, 0) if maps else loaded)
    return loaded.eval(), {**whole, **maps}, (*weights.notes, *notes)


def _without_maps(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the model, without its classifier, of which these make a backbone; others unchanged."""
    if not kwargs.get("features_only"):
        return kwargs
    return {key: value for key, value in kwargs.items() if key not in BACKBONE} | {"num_classes": 0}


def _build(timm_name: str, kwargs: dict[str, Any], seed: int) -> torch.nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: torch.nn.Module = timm.create_model(timm_name, pretrained=False, **kwargs)
    except (*UNFIT, ZeroDivisionError) as error:
        arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        reason = _first_line(error) or "an assertion of the model does not hold"
        raise UsageError(
            f"timm cannot build '{timm_name}' with {arguments}: {reason}", "check model.timm and model.kwargs"
        ) from error
    return model.eval()


def _check_arguments(timm_name: str, kwargs: dict[str, Any]) -> None:
    """Raise UsageError for a model or an argument with which timm would download or unpickle something."""
    if ":" in timm_name or not timm.is_model(timm_name):
        raise UsageError(f"timm has no model '{timm_name}'", _closest_model(timm_name))
    for key in sorted(RESERVED & kwargs.keys()):
        raise UsageError(f"model.kwargs cannot hold '{key}'", "name the weights in model.checkpoint")


def _check_size(timm_name: str, kwargs: dict[str, Any]) -> None:
    """Raise InputError for a model with too many modules, or whose weights do not fit into memory.

    Weights are not allocated for the check.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), _limited_modules(timm_name):
            model = timm.create_model(timm_name, pretrained=False, **kwargs)
    except (*UNFIT, ZeroDivisionError):
        return  # the model cannot be built without its values, or not at all
    require_memory(sum(weight.nbytes for weight in model.state_dict().values()), f"'{timm_name}'")


@contextmanager
def _limited_modules(timm_name: str) -> Iterator[None]:
    """Raise InputError as soon as more than `MODULES_MAX` modules are built, for example at a depth of a million."""
    numbers = count(1)

    def registered(module: torch.nn.Module, name: str, child: torch.nn.Module | None) -> None:  # noqa: ARG001
        if next(numbers) > MODULES_MAX:
            raise InputError(
                f"'{timm_name}' with these arguments has more than {MODULES_MAX:,} modules", "check model.kwargs"
            )

    hook = register_module_module_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()


def _closest_model(name: str) -> str:
    match = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else "timm.list_models() lists the names"


def _hub_arguments(hub: HubFolder, timm_name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model folder and of the recipe. Raises InputError if they contradict each other."""
    folder = hub.weights.parent
    if hub.architecture and hub.architecture.partition(".")[0] != timm_name.partition(".")[0]:
        message = f"'{folder}' holds a '{hub.architecture}', model.timm is '{timm_name}'"
        raise InputError(message, f"set model.timm to {hub.architecture}")
    for key in sorted(kwargs.keys() & hub.arguments.keys()):
        if kwargs[key] != hub.arguments[key]:
            message = f"'{folder}' has {key} = {hub.arguments[key]!r}, model.kwargs.{key} is {kwargs[key]!r}"
            raise InputError(message, f"remove model.kwargs.{key}")
    return {**hub.arguments, **kwargs}


def _example_outputs(model: torch.nn.Module, example: torch.Tensor, timm_name: str) -> tuple[torch.Tensor, ...]:
    try:
        outputs = model(example)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, example.shape[1:]))
        raise UsageError(
            f"'{timm_name}' does not take images of {size}: {_first_line(error)}", "set model.kwargs.img_size"
        ) from error
    found = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    is_tensors = isinstance(found, tuple | list) and all(
        isinstance(one, torch.Tensor) and one.ndim > 1 for one in found
    )
    if not found or not is_tensors:
        raise UsageError(f"'{timm_name}' with these arguments does not return tensors", "check model.kwargs")
    return output_list(found)


def _task(model: torch.nn.Module, outputs: tuple[torch.Tensor, ...], task: Task | None, timm_name: str) -> Task:
    """Return the task of a model. Raises UsageError for a task that does not fit its outputs."""
    classes = int(getattr(model, "num_classes", 0) or 0)
    is_classifier = classes > 0
    if is_classifier and (len(outputs) > 1 or outputs[0].ndim != 2):
        message = f"'{timm_name}' with these arguments is not a classifier, though it has {classes} classes"
        raise UsageError(message, "check model.kwargs; `num_classes: 0` makes a feature extractor")
    if is_classifier and task == "features":
        message = f"model.task is features, but '{timm_name}' has a classifier of {classes} classes"
        raise UsageError(message, "set model.kwargs.num_classes to 0, or remove model.task")
    if not is_classifier and task not in (None, "features"):
        message = f"model.task is {task}, but '{timm_name}' with these arguments has no classifier"
        raise UsageError(message, "set model.kwargs.num_classes, or remove model.task")
    return task or ("classify" if is_classifier else "features")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
