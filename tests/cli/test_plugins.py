"""Methods of another package, `tests/sample_plugin`, through entry points."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import describe_methods, load_recipe, read_locked
from vitslim.recipe.plugins import allow_plugins, plugins_of
from vitslim.recipe.stages import methods
from vitslim.results import Report

SAMPLE = Path(__file__).parents[1] / "sample_plugin"
RECIPE = """
name: thirds
model:
  timm: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2, num_classes: 10}
data: {kind: digits, calibration: 16, eval_images: 20}
stages:
  - prune: {method: every-third, first: 1}
  - export
report: {backends: [], batches: [1]}
"""
HINT = "plugin vitslim-thirds 1.2 provides it: add --allow-plugins if you trust that package"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sample plugin on sys.path, as if it were installed."""
    monkeypatch.syspath_prepend(str(SAMPLE))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "vitslim_thirds"]:
        del sys.modules[name]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "thirds.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install a plugin with this code and this name of its entry point."""

    def install(code: str, name: str = "strange") -> None:
        (tmp_path / "site" / "strange-0.1.dist-info").mkdir(parents=True)
        (tmp_path / "site" / "strange-0.1.dist-info" / "METADATA").write_text("Name: strange\nVersion: 0.1\n")
        points = f"[vitslim.methods]\n{name} = strange_method:Config\n"
        (tmp_path / "site" / "strange-0.1.dist-info" / "entry_points.txt").write_text(points)
        (tmp_path / "site" / "strange_method.py").write_text(dedent(code))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    yield install
    sys.modules.pop("strange_method", None)


@pytest.mark.usefixtures("installed")
class TestAllowed:
    def test_a_plugin_runs_from_recipe_to_report(
        self,
        vitslim: Callable[..., Any],
        run_recipe: Callable[..., Artifact],
        recipe: Path,
        tmp_path: Path,
        one_export: None,
    ) -> None:
        with allow_plugins():
            report = run_recipe(load_recipe(recipe), tmp_path / "out").report
        assert [stage.method for stage in report.stages] == ["", "every-third", "onnx"]
        assert report.environment.versions["plugin vitslim-thirds"] == "1.2"
        locked = read_locked(tmp_path / "out" / "recipe.lock.yaml")
        assert locked.versions["plugin vitslim-thirds"] == "1.2"
        assert len(locked.digests["plugin vitslim-thirds"]) == 64
        again = ("run", tmp_path / "out" / "recipe.lock.yaml", "--frozen", "--out", tmp_path / "out")
        assert HINT in vitslim(*again).err
        repeated = vitslim(*again, "--allow-plugins")
        assert repeated.code == 0, repeated.err
        assert "plugin vitslim-thirds 1.2" in repeated.out
        report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
        assert all(stage.cached for stage in report.stages)

    def test_commands_know_the_method(self, vitslim: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
        plan = json.loads(vitslim("plan", recipe, "--allow-plugins", "--no-trace", "--format", "json").out)
        assert [row["method"] for row in plan["rows"]] == ["", "every-third", "onnx"]
        assert "first: 1" in vitslim("recipes", "show", recipe, "--allow-plugins").out
        assert vitslim("recipes", "validate", recipe, "--allow-plugins").code == 0
        assert "position of the first" in vitslim("recipes", "describe", "every-third", "--allow-plugins").out
        assert "EveryThird" in vitslim("recipes", "schema", "--allow-plugins").out
        assert vitslim("recipes", "diff", recipe, recipe, "--allow-plugins").code == 0
        assert vitslim("recipes", "pack", recipe, "--out", tmp_path / "t.zip", "--allow-plugins").code == 0

    def test_keys_of_the_method_are_checked(self, vitslim: Callable[..., Any], recipe: Path) -> None:
        outcome = vitslim("plan", recipe, "stages.0.prune.first=3", "--allow-plugins")
        assert outcome.code == 2
        assert "stages.0.prune.first: got 3, expected an integer from 0 to 2" in outcome.err

    def test_a_changed_plugin_has_another_digest(self, recipe: Path, tmp_path: Path, monkeypatch: Any) -> None:
        from vitslim.pipeline.run.stored.keys import stage_key

        copied = tmp_path / "copy"
        shutil.copytree(SAMPLE, copied)
        monkeypatch.setattr(sys, "path", [str(copied), *(path for path in sys.path if path != str(SAMPLE))])
        with allow_plugins():
            loaded = load_recipe(recipe)
            (plugin,) = plugins_of(loaded.stages)
            first = stage_key("before", loaded.stages[0])
            assert copied / "vitslim_thirds" / "stage.py" in plugin.source_files()
            (copied / "vitslim_thirds" / "stage.py").write_text("# changed\n")
            assert stage_key("before", loaded.stages[0]) != first


@pytest.mark.usefixtures("installed")
class TestNotAllowed:
    @pytest.mark.parametrize("command", [("run",), ("plan",), ("recipes", "show"), ("recipes", "pack")])
    def test_the_hint_names_the_option(
        self, vitslim: Callable[..., Any], recipe: Path, command: tuple[str, ...]
    ) -> None:
        outcome = vitslim(*command, recipe)
        assert outcome.code == 2
        assert f"hint: {HINT}" in outcome.err
        assert "vitslim_thirds" not in sys.modules

    def test_a_method_as_a_kind_has_the_hint(self, vitslim: Callable[..., Any], recipe: Path) -> None:
        recipe.write_text(RECIPE.replace("prune: {method: every-third, first: 1}", "every-third: {}"))
        assert HINT in vitslim("plan", recipe).err

    def test_a_description_has_the_hint(self, vitslim: Callable[..., Any]) -> None:
        assert HINT in vitslim("recipes", "describe", "every-third").err

    def test_the_methods_are_gone_after_a_command(self, vitslim: Callable[..., Any], recipe: Path) -> None:
        before = methods()
        assert vitslim("plan", recipe, "--no-trace", "--allow-plugins").code == 0
        assert methods() == before
        assert vitslim("plan", recipe, "--no-trace").code == 2

    def test_the_methods_are_gone_after_an_error(self, recipe: Path) -> None:
        before = methods()
        with pytest.raises(ZeroDivisionError), allow_plugins():
            assert len(methods()) == len(before) + 1
            assert any(info.method == "every-third" for info in describe_methods())
            raise ZeroDivisionError
        assert methods() == before


def test_plugins_start_without_torch(recipe: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SAMPLE)!r}); sys.argv[1:] = "
        f"['plan', {str(recipe)!r}, '--no-trace', '--allow-plugins']\n"
        "from vitslim.cli.app import main; main(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


CONFIG = """
    from typing import ClassVar, Literal
    from vitslim.recipe.stages.prune import Prune
    from vitslim.recipe.stage_config import Phase
    class {name}(Prune):
        method: Literal["{method}"]
        phase: ClassVar[Phase] = Phase.MASK
        def make_stage(self): return None
    Config = {name}
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0 if False else undefined", "cannot be imported: NameError"),
        ("def", "cannot be imported: SyntaxError"),
        ("Other = 1", "cannot be imported: AttributeError"),
        ("Config = 1", "'strange_method:Config' is not the config of a method"),
        ("class Config: pass", "is not the config of a method"),
        ("from vitslim.recipe.stage_config import StageConfig as Config", "is not the config of a method"),
        (CONFIG.format(name="A", method="strange").replace("def make_stage", "def other"), "is not the config"),
        (CONFIG.format(name="A", method="other"), "the entry point 'strange' names the config of 'other'"),
        (CONFIG.format(name="DepGraph", method="strange"), "repeats 'class DepGraph' of vitslim"),
    ],
)
def test_a_plugin_that_is_no_method_is_refused(
    vitslim: Callable[..., Any], broken: Callable[..., None], code: str, message: str
) -> None:
    broken(code)
    outcome = vitslim("plan", "quickstart", "--no-trace", "--allow-plugins")
    assert outcome.code == 2
    assert "plugin strange 0.1" in outcome.err
    assert message in outcome.err
    assert "hint: " in outcome.err
    assert vitslim("plan", "quickstart", "--no-trace").code == 0


def test_a_plugin_cannot_replace_a_method(vitslim: Callable[..., Any], broken: Callable[..., None]) -> None:
    broken(CONFIG.format(name="A", method="two-four"), "two-four")
    assert "repeats 'prune: two-four' of vitslim" in vitslim("recipes", "describe", "--allow-plugins").err
