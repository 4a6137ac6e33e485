"""Rules between the entries of a recipe: the order of stages, and names that refer to something."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.errors import RecipeError
from vitslim.pipeline.plan import build_plan
from vitslim.recipe import check_order, validate

DEPGRAPH = {"prune": {"method": "depgraph"}}
TWO_FOUR = {"prune": {"method": "two-four"}}
UNSTRUCTURED = {"prune": {"method": "unstructured"}}
DEPTH = {"prune": {"method": "depth"}}
BRANCHES = {"prune": {"method": "depth", "unit": "branch"}}
DISTILL = {"distill": {}}
PTQ = {"quantize": {}}
SQUEEZE = {"token-squeeze": {"blocks": [1]}}
DTPS = {"token-squeeze": {"method": "dtps", "blocks": [3, 6]}}
RATIO = {"distill": {"loss": {"ratio": 2}}}


def _check(*stages: Any, **parts: Any) -> tuple[dict[str, str], dict[str, str]]:
    document = {
        "name": "test",
        "model": {"timm": "deit_tiny_patch16_224", "checkpoint": "w.safetensors"},
        "data": {"kind": "digits"},
        "stages": list(stages),
        **parts,
    }
    errors, warnings = check_order(validate(document, partial=True))
    for problem in errors + warnings:
        assert problem.message
        assert problem.hint
    return {p.where: p.message for p in errors}, {p.where: p.message for p in warnings}


@pytest.mark.parametrize(
    "stages",
    [
        [DEPGRAPH, TWO_FOUR, DISTILL, SQUEEZE, PTQ, "export"],
        [SQUEEZE, DEPGRAPH, DISTILL, DEPGRAPH, TWO_FOUR, PTQ, "export"],
        [TWO_FOUR, SQUEEZE, DISTILL, PTQ, "export"],
        [DEPTH, DEPGRAPH, BRANCHES, TWO_FOUR, DISTILL, PTQ, "export"],
        [DEPTH, SQUEEZE, BRANCHES, PTQ, "export"],
        [SQUEEZE, DTPS, DEPGRAPH, RATIO, TWO_FOUR, RATIO, PTQ, "export"],
        [DTPS, {"token-squeeze": {"method": "dynamicvit", "blocks": [9]}}, RATIO, "export"],
        [{"token-squeeze": {"method": "dtps", "keep_rate": 1.0}}, DISTILL, "export"],
        ["export"],
    ],
)
def test_legal_orders(stages: list[Any]) -> None:
    assert _check(*stages) == ({}, {})


@pytest.mark.parametrize(
    ("stages", "where", "message"),
    [
        ([], "stages", "no export stage"),
        ([DEPGRAPH], "stages", "no export stage"),
        (["export", "export"], "stages.1.export", "second export"),
        (["export", DEPGRAPH], "stages.0.export", "export must be the last stage, but prune comes after it"),
        ([TWO_FOUR, DEPGRAPH, "export"], "stages.1.prune", "structural pruning must come before two-four"),
        ([PTQ, DEPGRAPH, "export"], "stages.1.prune", "structural pruning must come before quantize"),
        ([TWO_FOUR, DISTILL, TWO_FOUR, "export"], "stages.2.prune", "a model has at most one mask"),
        ([PTQ, TWO_FOUR, "export"], "stages.1.prune", "a sparsity mask must come before quantize"),
        ([UNSTRUCTURED, DEPGRAPH, "export"], "stages.1.prune", "structural pruning must come before unstructured"),
        ([UNSTRUCTURED, DEPTH, "export"], "stages.1.prune", "structural pruning must come before unstructured"),
        ([TWO_FOUR, BRANCHES, "export"], "stages.1.prune", "structural pruning must come before two-four"),
        ([PTQ, DEPTH, "export"], "stages.1.prune", "structural pruning must come before quantize"),
        ([UNSTRUCTURED, UNSTRUCTURED, "export"], "stages.1.prune", "a model has at most one mask"),
        ([TWO_FOUR, UNSTRUCTURED, "export"], "stages.1.prune", "unstructured comes after two-four"),
        ([UNSTRUCTURED, TWO_FOUR, "export"], "stages.1.prune", "two-four comes after unstructured"),
        ([PTQ, UNSTRUCTURED, "export"], "stages.1.prune", "must see the sparse weights"),
        ([BRANCHES, SQUEEZE, "export"], "stages.1.token-squeeze", "may remove the attention"),
        ([PTQ, DISTILL, "export"], "stages.1.distill", "training must come before quantize"),
        ([PTQ, PTQ, "export"], "stages.1.quantize", "ptq comes after ptq: the weights are already integers"),
    ],
)
def test_illegal_orders(stages: list[Any], where: str, message: str) -> None:
    errors, _ = _check(*stages)
    assert list(errors) == [where]
    assert message in errors[where]


def test_all_illegal_orders_are_reported_at_once() -> None:
    errors, _ = _check("export", PTQ, DEPGRAPH, DISTILL)
    assert list(errors) == ["stages.0.export", "stages.2.prune", "stages.3.distill"]


def test_squeeze_after_quantize_is_a_warning() -> None:
    errors, warnings = _check(PTQ, SQUEEZE, "export")
    assert errors == {}
    assert "calibration included the tokens that this stage removes" in warnings["stages.1.token-squeeze"]
    assert "stages.1.token-squeeze" in warnings["stages.1.token-squeeze"]


def test_unstructured_gives_a_warning_about_latency() -> None:
    errors, warnings = _check(DEPTH, UNSTRUCTURED, DISTILL, PTQ, "export")
    assert errors == {}
    assert "does not reduce latency" in warnings["stages.1.prune"]


def test_random_weights_are_a_warning() -> None:
    _, warnings = _check("export", model={"timm": "deit_tiny_patch16_224"})
    assert "random weights" in warnings["model.checkpoint"]


@pytest.mark.parametrize(
    ("first", "second", "where", "message"),
    [
        ([1, 2, 1], [], "stages.0.token-squeeze.blocks", "block 1 is already squeezed by this stage"),
        ([1, 2], [2], "stages.1.token-squeeze.blocks", "block 2 is already squeezed by stages.0"),
    ],
)
def test_a_block_is_squeezed_once(first: list[int], second: list[int], where: str, message: str) -> None:
    errors, _ = _check({"token-squeeze": {"blocks": first}}, {"token-squeeze": {"blocks": second}}, "export")
    assert list(errors) == [where]
    assert message in errors[where]


@pytest.mark.parametrize(
    ("stages", "where", "message"),
    [
        ([DTPS, "export"], "stages.0.token-squeeze", "no later stage trains the predictors of dtps"),
        ([DTPS, DISTILL, "export"], "stages.0.token-squeeze", "no later stage trains the predictors of dtps"),
        ([RATIO, DTPS, RATIO, "export"], "stages.0.distill.loss.ratio", "no earlier stage adds token predictors"),
        ([SQUEEZE, RATIO, "export"], "stages.1.distill.loss.ratio", "no earlier stage adds token predictors"),
        ([{"distill": {"loss": {"token": 1}}}, "export"], "stages.0.distill.loss.token", "no earlier stage adds"),
        (
            [DTPS, {"distill": {"teacher": "none", "loss": {"ratio": 2, "token": 1}}}, "export"],
            "stages.1.distill.loss.token",
            "`loss.token` needs a teacher",
        ),
        (
            [DTPS, {"distill": {"loss": {"ratio": 2, "feature": 1}}}, "export"],
            "stages.1.distill.loss.feature",
            "token predictors have dropped tokens",
        ),
        (
            [DTPS, RATIO, {"quantize": {"method": "qat", "loss": {"ratio": 2}}}, "export"],
            "stages.2.quantize.loss.ratio",
            "no gradient reaches predictors",
        ),
        (
            [DTPS, {"token-squeeze": {"blocks": [5]}}, RATIO, "export"],
            "stages.0.token-squeeze.blocks",
            "another stage squeezes block 5 without a predictor, after block 3",
        ),
        (
            [{"token-squeeze": {"method": "dtps", "keep_rate": [0.5, 0.4]}}, RATIO, "export"],
            "stages.0.token-squeeze.keep_rate",
            "got 2 keep rates for 3 blocks",
        ),
        (
            [{"token-squeeze": {"method": "dtps", "keep_rate": [0.5, 0.6, 0.4]}}, RATIO, "export"],
            "stages.0.token-squeeze.keep_rate",
            "cannot keep more of the first tokens",
        ),
    ],
)
def test_predictors_need_training_that_fits(stages: list[Any], where: str, message: str) -> None:
    errors, _ = _check(*stages)
    assert list(errors) == [where]
    assert message in errors[where]


@pytest.mark.parametrize("teacher", ["none", "previous", "dense", "cut", "prune", {"timm": "deit_small_patch16_224"}])
def test_known_teachers(teacher: object) -> None:
    cut = {"prune": {"method": "depgraph", "name": "cut"}}
    assert _check(cut, {"distill": {"teacher": teacher}}, "export")[0] == {}


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("cot", "got 'cot', expected the name of an earlier stage"),
        ("late", "'late' does not come before"),
        ("me", "'me' does not come before"),
        ("distill", "'distill' does not come before"),
        ("quantize", "got 'quantize', expected the name"),
    ],
)
def test_unknown_teachers(teacher: str, message: str) -> None:
    cut = {"prune": {"method": "depgraph", "name": "cut"}}
    late = {"token-squeeze": {"blocks": [1], "name": "late"}}
    errors, _ = _check(cut, {"distill": {"teacher": teacher, "name": "me"}}, late, "export")
    assert list(errors) == ["stages.1.distill.teacher"]
    assert message in errors["stages.1.distill.teacher"]


def test_the_closest_teacher_is_named() -> None:
    document = {
        "name": "test", "model": {"timm": "x"}, "data": {"kind": "digits"},
        "stages": [{"prune": {"method": "depgraph", "name": "cut"}}, {"distill": {"teacher": "cot"}}, "export"],
    }  # fmt: skip
    assert check_order(validate(document))[0][0].hint == "did you mean 'cut'?"


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (["a", "a"], "stages.1.prune.name"),
        (["dense", "b"], "stages.0.prune.name"),
        (["b", "export"], "stages.1.prune.name"),
    ],
)
def test_names_are_unique_and_not_reserved(names: list[str], where: str) -> None:
    errors, _ = _check(*({"prune": {"method": "depgraph", "name": name}} for name in names), "export")
    assert list(errors) == [where]


@pytest.mark.parametrize(
    "distill",
    [{"loss": {"hard": 0, "soft": 0}}, {"loss": {"hard": 0, "soft": 1}, "teacher": "none"}],
)
def test_a_loss_of_weight_zero_is_refused(distill: dict[str, Any]) -> None:
    assert (
        "every term of the loss has weight zero" in _check({"distill": distill}, "export")[0]["stages.0.distill.loss"]
    )


@pytest.mark.parametrize(
    ("parts", "where", "message"),
    [
        ({"data": {"kind": "digits", "root": "x"}}, "data.root", "no folder"),
        ({"data": {"kind": "digits", "also_evaluate": {"a": "b"}}}, "data.also_evaluate", "no further data sets"),
        ({"data": {"kind": "imagefolder", "also_evaluate": {"val": "b"}}}, "data.also_evaluate.val", "validation set"),
        ({"model": {"timm": "x", "checkpoint": "package:../secret"}}, "model.checkpoint", "expected package:NAME"),
        ({"model": {"timm": "x", "checkpoint": "package:"}}, "model.checkpoint", "expected package:NAME"),
        ({"model": {"timm": "x", "kwargs": {"checkpoint_path": "a.pth"}}}, "model.kwargs.checkpoint_path", "weights"),
        ({"model": {"timm": "x", "kwargs": {"pretrained": True}}}, "model.kwargs.pretrained", "weights come"),
        ({"report": {"backends": ["onnxruntime:gpu"]}}, "report.backends.0", "got 'onnxruntime:gpu'"),
        ({"report": {"backends": ["sim:systolic", "sim:systolic"]}}, "report.backends.1", "twice"),
        ({"report": {"backends": [{"array": [32, 32]}]}}, "report.backends.0", "needs the key 'sim'"),
        ({"report": {"backends": [{"sim": "systolic"}, "sim:systolic"]}}, "report.backends.1", "twice"),
        ({"gates": {"speedup_min": {"sim:systolic": 2}}}, "gates.speedup_min.sim:systolic", "not among"),
    ],
)  # fmt: skip
def test_references_must_exist(parts: dict[str, Any], where: str, message: str) -> None:
    errors, _ = _check("export", **parts)
    assert list(errors) == [where]
    assert message in errors[where]


def test_the_closest_backend_is_named() -> None:
    document = {
        "name": "test", "model": {"timm": "x"}, "data": {"kind": "digits"}, "stages": ["export"],
        "report": {"backends": ["onnxruntime:cpuu"]}, "gates": {"speedup_min": {"onnxruntime": 2}},
    }  # fmt: skip
    hints = {p.where: p.hint for p in check_order(validate(document))[0]}
    assert hints["report.backends.0"] == "did you mean 'onnxruntime:cpu'?"
    assert hints["gates.speedup_min.onnxruntime"] == "did you mean 'onnxruntime:cpuu'?"


def test_a_systolic_array_can_come_from_a_file() -> None:
    assert _check("export", report={"backends": ["sim:my-array.yaml"]})[0] == {}


def test_a_backend_with_settings_can_have_a_gate() -> None:
    backends = [{"sim": "systolic", "array": [32, 32], "dataflow": "os"}]
    gates = {"speedup_min": {"sim:systolic(array=[32, 32], dataflow=os)": 2}}
    assert _check("export", report={"backends": backends}, gates=gates)[0] == {}


@pytest.mark.parametrize(
    ("backend", "message", "hint"),
    [
        ({"sim": "systolic", "aray": [32, 32]}, "aray: unknown key", "did you mean 'array'?"),
        ({"sim": "a100x"}, "no simulated backend 'a100x'", "did you mean 'a100'?"),
        ({"sim": "a100", "clock_mhz": "fast"}, "clock_mhz", "for example clock_mhz: 1410"),
    ],
)
def test_wrong_settings_are_found_at_plan(backend: dict[str, Any], message: str, hint: str) -> None:
    document = {"name": "test", "model": {"timm": "x"}, "data": {"kind": "digits"}, "stages": ["export"]}
    recipe = validate(document | {"report": {"backends": ["onnxruntime:cpu", backend]}})
    with pytest.raises(RecipeError) as error:
        build_plan(recipe, trace=False)
    (problem,) = error.value.problems
    assert (problem.where, problem.hint) == ("report.backends.1", hint)
    assert message in problem.message


def test_a_packaged_file_is_not_a_teacher() -> None:
    teacher = {"timm": "x", "checkpoint": "package:quickstart.safetensors"}
    assert list(_check({"distill": {"teacher": teacher}}, "export")[0]) == ["stages.0.distill.teacher.checkpoint"]
