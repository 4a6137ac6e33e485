"""Overrides of a recipe: `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitslim.errors import Problem
from vitslim.recipe import load_recipe

Problems = Callable[..., dict[str, Problem]]
Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("seed=7", lambda r: r.seed, 7),
        (" seed =7", lambda r: r.seed, 7),
        ("name=2024", lambda r: r.name, "2024"),
        ("description=a=b: [c", lambda r: r.description, "a=b: [c"),
        ("description='quoted'", lambda r: r.description, "quoted"),
        ("data.root=5e-5", lambda r: r.data.root, "5e-5"),
        ("data.root=~", lambda r: r.data.root, "~"),
        ("data.root=C:\\images [1]", lambda r: r.data.root, "C:\\images [1]"),
        ("data.also_evaluate.new=@dir", lambda r: r.data.also_evaluate["new"], "@dir"),
        ("model.checkpoint=", lambda r: r.model.checkpoint, None),
        ("model.checkpoint=null", lambda r: r.model.checkpoint, None),
        ("model.kwargs.depth=4", lambda r: r.model.kwargs["depth"], 4),
        ("model.kwargs.class_token=false", lambda r: r.model.kwargs["class_token"], False),
        ("stages.0.prune.pruning_ratio=0.3", lambda r: r.stages[0].pruning_ratio, 0.3),
        ("stages.0.prune.pruning_ratio=5e-1", lambda r: r.stages[0].pruning_ratio, 0.5),
        ("stages.0.prune={method: two-four}", lambda r: r.stages[0].method, "two-four"),
        ("stages.0=quantize", lambda r: r.stages[0].method, "ptq"),
        ("stages.1.distill.train.epochs=9", lambda r: r.stages[1].train.epochs, 9),
        ("stages.1.distill.teacher=none", lambda r: r.stages[1].teacher, "none"),
        ("stages.2.export.name=last", lambda r: r.stages[2].name, "last"),
        ("stages=[export]", lambda r: len(r.stages), 1),
        ("report.batches=[1, 64]", lambda r: r.report.batches, (1, 64)),
        ("report.seconds=1", lambda r: r.report.seconds, 1.0),
        ("gates.speedup_min.onnxruntime:cpu=2", lambda r: r.gates.speedup_min, {"onnxruntime:cpu": 2.0}),
        ('gates.speedup_min={"onnxruntime:cpu": 2}', lambda r: r.gates.speedup_min, {"onnxruntime:cpu": 2.0}),
    ],
)  # fmt: skip
def test_a_value_is_set(base: Path, override: str, get: Callable[[object], object], value: object) -> None:
    got = get(load_recipe(base, [override]))
    assert got == value
    assert type(got) is type(value)


def test_later_ones_win(base: Path) -> None:
    assert load_recipe(base, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "where", "message", "hint"),
    [
        ("seed", "--set", "got 'seed', expected KEY=VALUE", "such as"),
        ("=3", "--set", "expected KEY=VALUE", ""),
        ("a..b=3", "--set", "expected KEY=VALUE", ""),
        (".".join("a" * 50) + "=1", "--set", "expected KEY=VALUE", ""),
        ("sed=3", "sed", "unknown key", "did you mean 'seed'?"),
        ("data.rot=x", "data.rot", "unknown key", "did you mean 'root'?"),
        ("dat.root=x", "dat", "unknown key", "did you mean 'data'?"),
        ("seed=many", "seed", "got 'many', expected an integer", ""),
        ("seed=[1", "seed", "not valid YAML", "quotes"),
        ("seed.x=1", "seed", "got a mapping, expected an integer", ""),
        ("name.x=1", "name.x", "name is 'base', not a mapping", ""),
        ("stages.0.prune.scop=local", "stages.0.prune.scop", "unknown key", "did you mean 'scope'?"),
        ("stages.9.prune.pruning_ratio=0.3", "stages.9", "no position '9'", "positions are 0 to 2"),
        ("stages.x.prune.ratio=0.3", "stages.x", "no position 'x'", "positions are 0 to 2"),
        ("stages.-1.prune.ratio=0.3", "stages.-1", "no position '-1'", "positions are 0 to 2"),
        ("stages.0.distill.teacher=none", "stages.0.distill", "'prune', not 'distill'", "write stages.0.prune"),
        ("stages.0.ratio=0.3", "stages.0.ratio", "of kind 'prune', not 'ratio'", "write stages.0.prune"),
        ("stages.2.prune.scope=local", "stages.2.prune", "of kind 'export', not 'prune'", "write stages.2.export"),
    ],
)  # fmt: skip
def test_invalid_overrides_are_refused(
    problems: Problems, base: Path, override: str, where: str, message: str, hint: str
) -> None:
    found = problems(load_recipe, base, [override])
    assert list(found) == [where]
    assert message in found[where].message
    assert hint in found[where].hint


def test_their_problems_come_with_those_of_the_file(problems: Problems, base: Path, write: Write) -> None:
    path = write("bad.yaml", base.read_text() + "sed: 3\n")
    assert set(problems(load_recipe, path, ["stages.7=export", "seed=x"])) == {"sed", "stages.7", "seed"}


def test_overrides_apply_to_what_is_extended(base: Path, write: Write) -> None:
    child = write("child.yaml", "extends: base.yaml\n")
    assert load_recipe(child, ["stages.0.prune.pruning_ratio=0.5"]).stages[0].pruning_ratio == 0.5
