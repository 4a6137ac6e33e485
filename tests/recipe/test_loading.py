"""Finding a recipe and extending another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from vitslim.errors import InputError, Problem, UsageError
from vitslim.recipe import check_order, load_recipe, new_recipe_text, packaged_recipes, resolve_checkpoint
from vitslim.recipe.catalog import packaged_folder

Problems = Callable[..., dict[str, Problem]]
Write = Callable[..., Path]


class TestFinding:
    """Packaged names and paths."""

    @pytest.mark.parametrize("info", packaged_recipes(), ids=lambda info: info.name)
    def test_every_packaged_recipe_is_valid_and_legal(self, info: object) -> None:
        recipe = load_recipe(info.name, partial=True)
        assert recipe.name == info.name
        assert recipe.description == info.description != ""
        assert check_order(recipe)[0] == []

    def test_the_recipes_that_ship(self) -> None:
        assert {"quickstart", "deit-tiny-demo"} <= {info.name for info in packaged_recipes()}

    def test_the_demo_lists_the_keys_to_set(self, problems: Problems) -> None:
        hint = problems(load_recipe, "deit-tiny-demo")["data.root"].hint
        assert "--set data.root=DIR" in hint
        assert "--set model.checkpoint=FILE" in hint
        ready = load_recipe("deit-tiny-demo", ["model.checkpoint=w.safetensors", "data.root=images"])
        assert (ready.model.checkpoint, ready.data.root) == ("w.safetensors", "images")

    @pytest.mark.parametrize(
        ("name", "message", "hint"),
        [
            ("quikstart", "no recipe 'quikstart'", "did you mean 'quickstart'?"),
            ("deit_tiny_demo", "no recipe", "did you mean 'deit-tiny-demo'?"),
            ("bose.yaml", "no recipe 'bose.yaml'", "did you mean 'base.yaml'?"),
            ("zzz", "no recipe 'zzz'", "allowed: "),
            ("", "is a folder", "YAML file"),
            ("x" * 5000, "not a usable file name", "YAML file"),
            ("a\0b", "", ""),
        ],
    )
    def test_no_such_recipe(
        self, monkeypatch: pytest.MonkeyPatch, base: Path, name: str, message: str, hint: str
    ) -> None:
        monkeypatch.chdir(base.parent)
        with pytest.raises(UsageError) as caught:
            load_recipe(name)
        assert message in caught.value.message
        assert hint in caught.value.hint
        assert caught.value.exit_code == 2

    def test_a_folder_is_no_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is a folder"):
            load_recipe(tmp_path)

    def test_a_path_relative_to_the_working_directory(self, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
        monkeypatch.chdir(base.parent)
        assert load_recipe("base.yaml").model.checkpoint == "weights.safetensors"


class TestPaths:
    """Relative paths of a file are relative to it; those of overrides to the working directory."""

    def test_paths_of_a_file(self, base: Path) -> None:
        recipe, folder = load_recipe(base), base.parent
        assert recipe.model.checkpoint == str(folder / "weights.safetensors")
        assert recipe.data.root == str(folder / "images")
        assert recipe.data.also_evaluate == {"more": str(folder / "more"), "far": "/far"}
        assert recipe.stages[1].teacher.checkpoint == str(folder / "teacher.safetensors")

    def test_paths_of_two_teachers(self, base: Path, write: Write) -> None:
        teachers = "[{timm: a, checkpoint: a.safetensors}, {timm: b, checkpoint: b.safetensors}]"
        path = write(
            "two.yaml",
            base.read_text().replace("{timm: deit_small_patch16_224, checkpoint: teacher.safetensors}", teachers),
        )
        teachers = load_recipe(path).stages[1].teachers
        assert [one.checkpoint for one in teachers] == [str(path.parent / f"{name}.safetensors") for name in "ab"]

    def test_paths_of_a_base_are_relative_to_the_base(self, base: Path, write: Write) -> None:
        child = write("deep/child.yaml", "extends: ../base.yaml\ndata: {root: here}\n")
        recipe = load_recipe(child)
        assert Path(recipe.model.checkpoint).resolve() == base.parent / "weights.safetensors"
        assert recipe.data.root == str(child.parent / "here")

    def test_paths_of_overrides(self, base: Path) -> None:
        assert load_recipe(base, ["data.root=images"]).data.root == "images"

    def test_home(self, base: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        path = write("home.yaml", base.read_text().replace("root: images", "root: ~/images"))
        assert load_recipe(path).data.root == "/home/someone/images"

    def test_packaged_weights(self) -> None:
        recipe = load_recipe("quickstart")
        name = recipe.model.checkpoint.removeprefix("package:")
        if (packaged_folder() / name).is_file():
            assert resolve_checkpoint(recipe) == packaged_folder() / name
        missing = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"checkpoint": "package:no.safetensors"})}
        )
        with pytest.raises(InputError, match=r"ships no file 'no\.safetensors'") as caught:
            resolve_checkpoint(missing)
        assert caught.value.exit_code == 5
        assert caught.value.hint

    def test_other_weights(self, base: Path) -> None:
        assert resolve_checkpoint(load_recipe(base)) == base.parent / "weights.safetensors"
        assert resolve_checkpoint(load_recipe(base, ["model.checkpoint="])) is None


class TestExtends:
    """Mappings are merged, lists replaced, circles refused."""

    def test_a_file_over_a_file(self, base: Path, write: Write) -> None:
        child = write(
            "child.yaml",
            dedent("""
            extends: base.yaml
            name: child
            model: {kwargs: {img_size: 64}}
            data: {calibration: 8}
            stages: [export]
            """),
        )
        recipe = load_recipe(child)
        assert recipe.name == "child"
        assert recipe.model.timm == "deit_tiny_patch16_224"
        assert recipe.model.kwargs == {"num_classes": 10, "img_size": 64}
        assert (recipe.data.kind, recipe.data.calibration) == ("imagefolder", 8)
        assert [stage.method for stage in recipe.stages] == ["onnx"]

    def test_a_packaged_recipe(self, write: Write) -> None:
        child = write("child.yaml", "extends: quickstart\nname: mine\nseed: 5\n")
        recipe = load_recipe(child)
        assert (recipe.name, recipe.seed) == ("mine", 5)
        assert recipe.stages == load_recipe("quickstart").stages

    def test_three_levels_and_null(self, base: Path, write: Write) -> None:
        write("middle.yaml", "extends: base.yaml\nseed: 1\nmodel: {checkpoint: null}\n")
        recipe = load_recipe(write("top.yaml", "extends: middle.yaml\nseed: 2\n"))
        assert (recipe.seed, recipe.model.checkpoint) == (2, None)

    @pytest.mark.parametrize(
        ("files", "message", "hint"),
        [
            ({"a.yaml": "extends: a.yaml\n"}, "circle: a.yaml -> a.yaml", "remove one `extends`"),
            ({"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: ./a.yaml\n"}, "a.yaml -> b.yaml -> a.yaml", ""),
            ({"a.yaml": "extends: quickstrt\n"}, "no recipe 'quickstrt'", "did you mean 'quickstart'?"),
            ({"a.yaml": "extends: git+https://example.com/x@0\n"}, "expected the hash of a commit", "git ls-remote"),
            ({"a.yaml": "extends: [quickstart]\n"}, "got a list, expected a packaged recipe or a file", ""),
            ({"a.yaml": "extends:\n"}, "got null, expected a packaged recipe or a file", ""),
            ({"a.yaml": "extends: .\n"}, "is a folder", ""),
            (
                {"a.yaml": "extends: 1.yaml\n"} | {f"{i}.yaml": f"extends: {i + 1}.yaml\n" for i in range(1, 12)},
                "more than 8 recipes",
                "",
            ),
        ],
    )  # fmt: skip
    def test_invalid_bases_are_refused(
        self, problems: Problems, write: Write, files: dict[str, str], message: str, hint: str
    ) -> None:
        paths = [write(name, text) for name, text in files.items()]
        found = problems(load_recipe, paths[0])
        assert list(found) == ["extends"]
        assert message in found["extends"].message
        assert hint in found["extends"].hint

    def test_a_broken_base_is_named(self, problems: Problems, write: Write) -> None:
        write("base.yaml", "- a\n")
        assert "expected a mapping" in problems(load_recipe, write("a.yaml", "extends: base.yaml\n"))[""].message


def test_a_new_recipe_is_valid_and_legal(write: Write) -> None:
    recipe = load_recipe(write("new.yaml", new_recipe_text("my-vit", "vit_small_patch16_224")), partial=True)
    assert (recipe.name, recipe.model.timm) == ("my-vit", "vit_small_patch16_224")
    assert check_order(recipe)[0] == []


@pytest.mark.parametrize(
    ("name", "timm", "hint"),
    [("My ViT!", "x", "such as 'my-vit'"), ("!", "x", "such as 'my-model'"), ("a", "x: {y", "deit_tiny_patch16_224")],
)
def test_a_new_recipe_needs_valid_names(name: str, timm: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        new_recipe_text(name, timm)
    assert hint in caught.value.hint


def test_recipes_are_found_inside_an_installed_package(tmp_path: Path) -> None:
    package, checkout = tmp_path / "site" / "vitslim", packaged_folder().parent
    shutil.copytree(checkout / "vitslim" / "recipe", package / "recipe")
    shutil.copytree(checkout / "recipes", package / "_recipes")
    for name in ("__init__.py", "errors.py", "tasks.py", "version.py"):
        shutil.copy(checkout / "vitslim" / name, package / name)
    program = (
        "from vitslim.recipe import load_recipe, packaged_recipes as p; load_recipe('quickstart'); print(p()[0].path)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == package / "_recipes"
