"""Packing of recipes, and recipes that extend an archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from archives import PLAIN, zipped

from vitslim.errors import InputError, Problem, UsageError
from vitslim.recipe import load_recipe, recipe_text
from vitslim.recipe.document.yaml12 import parse_yaml
from vitslim.recipe.sharing import pack_recipe
from vitslim.recipe.sources.zip_archive import unpack

Write = Callable[..., Path]
RECIPE = """
name: mine
extends: ../bases/team.yaml
data: {root: /images, classes: lists/names.txt}
stages:
  - prune: {method: depgraph, budget: {latency: 0.7, table: table.json}}
  - distill: {teacher: [dense, {timm: x, checkpoint: ../w/teacher.safetensors}]}
  - export
report: {backends: ["sim:array.yaml", {sim: other/array.yaml, dataflow: ws}]}
gates: {speedup_min: {"sim:array.yaml": 1.1, "sim:other/array.yaml(dataflow=ws)": 1.2}}
"""
TEAM = """
name: team
extends: deit-tiny-demo
model: {timm: deit_tiny_patch16_224, checkpoint: weights.safetensors}
data: {also_evaluate: {more: ../more}}
"""


@pytest.fixture
def mine(write: Write, cache: Path) -> Path:
    """A recipe in `own/` that extends one in `bases/`, with a file of every kind."""
    write("bases/team.yaml", TEAM)
    write("bases/weights.safetensors", b"weights")
    write("w/teacher.safetensors", b"teacher")
    write("own/lists/names.txt", "cat\ndog\n")
    write("own/table.json", "{}")
    write("own/array.yaml", "array: [8, 8]\n")
    write("own/other/array.yaml", "array: [4, 4]\n")
    return write("own/mine.yaml", RECIPE)


class TestPacking:
    def test_the_archive_has_the_bases_and_the_small_files(self, mine: Path, tmp_path: Path) -> None:
        packed, path = pack_recipe(str(mine), tmp_path / "mine.zip")
        assert set(packed.names) == {
            "recipe.yaml", "team.yaml", "deit-tiny-demo.yaml", "names.txt", "table.json", "array.yaml", "array-2.yaml"
        }  # fmt: skip
        with ZipFile(path) as archive:
            assert archive.namelist() == sorted(packed.names)
        assert set(packed.left_out) == {
            "data.root (/images)", "data.also_evaluate.more (../more)", "model.checkpoint (weights.safetensors)",
            "stages.1.distill.teacher.checkpoint (../w/teacher.safetensors)",
        }  # fmt: skip

    def test_a_packed_recipe_is_the_same_recipe_with_other_paths(self, mine: Path, tmp_path: Path, cache: Path) -> None:
        _, path = pack_recipe(str(mine), tmp_path / "mine.zip")
        recipe = load_recipe(path, ["data.root=/images"])
        (folder,) = (cache / "recipes" / "zip").iterdir()
        assert Path(recipe.data.classes).read_text() == "cat\ndog\n"
        assert recipe.report.backends[0] == f"sim:{folder}/array.yaml"
        assert recipe.report.backends[1] == {"sim": f"{folder}/array-2.yaml", "dataflow": "ws"}
        assert list(recipe.gates.speedup_min) == [
            f"sim:{folder}/array.yaml", f"sim:{folder}/array-2.yaml(dataflow=ws)"
        ]  # fmt: skip
        original, own = recipe_text(load_recipe(mine)), f"{tmp_path}/own/"
        for old, new in (
            ("lists/", ""), ("other/array.yaml", "array-2.yaml"), ("../w/", ""), ("../bases/../", ""), ("../bases/", "")
        ):  # fmt: skip
            original = original.replace(f"{own}{old}", own + new)
        assert parse_yaml(recipe_text(recipe)) == parse_yaml(original.replace(own, f"{folder}/"))

    def test_weights_are_packed_on_request(self, mine: Path, tmp_path: Path) -> None:
        packed, path = pack_recipe(str(mine), tmp_path / "mine.zip", weights=True)
        assert {"weights.safetensors", "teacher.safetensors"} <= set(packed.names)
        checkpoint = load_recipe(path, partial=True).model.checkpoint
        assert Path(checkpoint or "").read_bytes() == b"weights"

    def test_equal_recipes_give_equal_bytes(self, mine: Path, tmp_path: Path) -> None:
        first, second = (pack_recipe(str(mine), tmp_path / name, weights=True)[1] for name in ("a.zip", "b.zip"))
        assert first.read_bytes() == second.read_bytes()

    def test_packing_an_unpacked_archive_gives_the_same_bytes(self, mine: Path, tmp_path: Path) -> None:
        _, path = pack_recipe(str(mine), tmp_path / "a.zip", weights=True)
        assert pack_recipe(str(path), tmp_path / "b.zip", weights=True)[1].read_bytes() == path.read_bytes()

    def test_a_recipe_without_changed_paths_keeps_its_comments(self, write: Write, cache: Path, tmp_path: Path) -> None:
        _, path = pack_recipe(str(write("plain.yaml", PLAIN)), tmp_path / "plain.zip")
        with ZipFile(path) as archive:
            assert archive.read("recipe.yaml").decode() == PLAIN

    def test_a_missing_file_is_named(self, mine: Path, tmp_path: Path) -> None:
        (mine.parent / "table.json").unlink()
        with pytest.raises(InputError, match=r"stages.0.prune.budget.table: there is no file"):
            pack_recipe(str(mine), tmp_path / "mine.zip")
        assert not list(tmp_path.glob("*.zip*"))

    def test_an_invalid_recipe_is_not_packed(self, write: Write, problems: Callable[..., dict[str, Problem]]) -> None:
        assert "unknown key" in problems(pack_recipe, str(write("a.yaml", PLAIN + "sed: 1\n")))["sed"].message

    def test_a_model_folder_needs_its_weights(self, write: Write, cache: Path, tmp_path: Path) -> None:
        write("hub/model.safetensors", b"weights")
        write("hub/config.json", '{"architecture": "deit_tiny_patch16_224"}')
        write("hub/notes.txt", "not needed")
        recipe = write("a.yaml", PLAIN.replace("timm: deit_tiny_patch16_224", "checkpoint: hub"))
        with pytest.raises(UsageError) as caught:
            pack_recipe(str(recipe), tmp_path / "a.zip")
        assert "--weights" in caught.value.hint
        packed, path = pack_recipe(str(recipe), tmp_path / "a.zip", weights=True)
        assert packed.names == ("hub/config.json", "hub/model.safetensors", "recipe.yaml")
        assert load_recipe(path).model.timm == "deit_tiny_patch16_224"

    def test_an_archive_that_cannot_be_written_is_named(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            pack_recipe(str(write("plain.yaml", PLAIN)), tmp_path / "none" / "a.zip")
        assert "--out" in caught.value.hint


class TestExtending:
    def test_a_local_recipe_extends_an_archive(self, mine: Path, write: Write, tmp_path: Path) -> None:
        pack_recipe(str(mine), tmp_path / "mine.zip")
        recipe = load_recipe(write("over.yaml", "name: over\nextends: mine.zip\ndata: {root: here}\n"))
        assert (recipe.name, recipe.data.root) == ("over", str(tmp_path / "here"))

    @pytest.mark.parametrize(
        ("line", "where"),
        [
            ("data: {classes: ../x.txt}", "data.classes"),
            ("data: {classes: /etc/passwd}", "data.classes"),
            ("data: {root: ~/images}", "data.root"),
            ("data: {root: 'C:\\images'}", "data.root"),
            ("data: {also_evaluate: {more: a/../../b}}", "data.also_evaluate.more"),
            ("model: {checkpoint: /w.pth}", "model.checkpoint"),
            ("model: {checkpoint: \"a\\0b\"}", "model.checkpoint"),
            ("model: {checkpoint: \"\\e[2J\"}", "model.checkpoint"),
            ("report: {backends: ['sim:/etc/a.yaml']}", "report.backends.0"),
            ("report: {backends: [{sim: ../a.yaml}]}", "report.backends.0"),
            ("gates: {speedup_min: {'sim:../a.yaml': 1}}", "gates.speedup_min"),
            ("stages: [prune: {method: depgraph, budget: {table: /a.json}}]", "stages.0.prune.budget.table"),
            ("stages: [distill: {teacher: {timm: x, checkpoint: ../a}}]", "stages.0.distill.teacher.checkpoint"),
        ],
    )  # fmt: skip
    def test_paths_cannot_leave_the_archive(
        self, cache: Path, tmp_path: Path, problems: Callable[..., dict[str, Problem]], line: str, where: str
    ) -> None:
        archive = zipped(tmp_path, {"recipe.yaml": f"extends: quickstart\n{line}\n"})
        found = problems(load_recipe, archive)
        assert list(found) == [where]
        assert "expected a path inside the archive" in found[where].message
        assert "--data DIR" in found[where].hint

    def test_a_link_in_the_cache_is_not_followed(
        self, cache: Path, tmp_path: Path, problems: Callable[..., dict[str, Problem]]
    ) -> None:
        archive = zipped(tmp_path, {"recipe.yaml": "extends: quickstart\ndata: {classes: link}\n"})
        (unpack(archive) / "link").symlink_to("/etc/passwd")
        assert "data.classes" in problems(load_recipe, archive)
