"""Recipes from a commit of a git repository, against a local bare repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vitslim.errors import InputError, Problem, RecipeError, UsageError, VitslimError
from vitslim.recipe import load_recipe
from vitslim.recipe.sources import git_repository

RECIPE = """
name: shared
extends: base.yaml
data: {classes: lists/classes.txt}
"""
BASE = """
name: base
model: {timm: deit_tiny_patch16_224, checkpoint: w.safetensors}
data: {kind: imagefolder}
stages: [export]
"""


@dataclass(frozen=True)
class Repository:
    bare: Path
    first: str
    """Commit of the recipes."""
    last: str
    """Commit that renames the base recipe."""

    def named(self, commit: str, path: str = "team/shared.yaml") -> str:
        return f"git+file://{self.bare}@{commit}#{path}"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Team", "-c", "user.email=team@localhost", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    work = tmp_path_factory.mktemp("work")
    git(work, "init", "--quiet")
    (work / "team" / "lists").mkdir(parents=True)
    (work / "team" / "shared.yaml").write_text(RECIPE)
    (work / "team" / "base.yaml").write_text(BASE)
    (work / "team" / "lists" / "classes.txt").write_text("cat\ndog\n")
    (work / "team" / "up.yaml").write_text("extends: ../root.yaml\n")
    (work / "team" / "linked.yaml").symlink_to("/etc/passwd")
    (work / "team" / "by-link.yaml").write_text("extends: linked.yaml\n")
    (work / "team" / "nested.yaml").write_text("extends: git+file:///elsewhere@0123456#a.yaml\n")
    (work / "root.yaml").write_text(BASE)
    (work / "secret.txt").write_text("outside the folder of the recipe")
    git(work, "add", ".")
    git(work, "commit", "--quiet", "-m", "recipes")
    first = git(work, "rev-parse", "HEAD")
    git(work, "tag", "v1")
    git(work, "tag", "abcdef1")
    git(work, "tag", "-a", "-m", "annotated", "v2")
    (work / "team" / "base.yaml").write_text(BASE.replace("name: base", "name: newer"))
    git(work, "commit", "--quiet", "-am", "newer")
    bare = tmp_path_factory.mktemp("bare") / "recipes.git"
    git(work, "clone", "--quiet", "--bare", str(work), str(bare))
    return Repository(bare, first, git(work, "rev-parse", "HEAD"))


@pytest.mark.parametrize("length", [40, 12, 7])
def test_a_recipe_is_loaded_from_a_full_or_abbreviated_commit(repository: Repository, cache: Path, length: int) -> None:
    recipe = load_recipe(repository.named(repository.first[:length]), partial=True)
    assert recipe.name == "shared"
    (folder,) = cache.glob(f"recipes/git/*/{repository.first}")
    assert recipe.data.classes == str(folder / "lists" / "classes.txt")
    assert (folder / "lists" / "classes.txt").read_text() == "cat\ndog\n"
    assert recipe.model.checkpoint == str(folder / "w.safetensors")


def test_only_the_folder_of_the_recipe_is_copied_without_links(repository: Repository, cache: Path) -> None:
    load_recipe(repository.named(repository.first), partial=True)
    (folder,) = cache.glob(f"recipes/git/*/{repository.first}")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"shared.yaml", "base.yaml", "lists/classes.txt", "up.yaml", "by-link.yaml", "nested.yaml"}
    assert not list(folder.parent.glob(".*"))


def test_a_commit_is_read_offline_after_the_first_time(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved.git"
    shutil.copytree(repository.bare, moved)
    source = f"git+file://{moved}@{repository.first}#team/shared.yaml"
    recipe = load_recipe(source, partial=True)
    shutil.rmtree(moved)
    monkeypatch.setenv("PATH", "")
    assert load_recipe(source, partial=True) == recipe
    assert load_recipe(source.replace(repository.first, repository.first[:9]), partial=True) == recipe


def test_another_commit_is_another_recipe(repository: Repository, cache: Path) -> None:
    commits = (repository.first, repository.last)
    names = [load_recipe(repository.named(one, "team/base.yaml"), partial=True).name for one in commits]
    assert names == ["base", "newer"]


def test_a_local_recipe_extends_one_of_a_repository(repository: Repository, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"name: mine\nextends: {repository.named(repository.first)}\n")
    recipe = load_recipe(tmp_path / "mine.yaml", ["data.root=images"])
    assert (recipe.name, recipe.model.timm, recipe.data.root) == ("mine", "deit_tiny_patch16_224", "images")


def test_paths_on_the_command_line_may_be_absolute(repository: Repository, cache: Path) -> None:
    recipe = load_recipe(repository.named(repository.first), ["data.root=/data", "model.checkpoint=/w.safetensors"])
    assert (recipe.data.root, recipe.model.checkpoint) == ("/data", "/w.safetensors")


@pytest.mark.parametrize(
    ("path", "where", "message"),
    [
        ("team/up.yaml", "extends", "expected a path inside the archive or repository"),
        ("team/by-link.yaml", "extends", "no recipe 'linked.yaml'"),
        ("team/nested.yaml", "extends", "cannot name another one"),
    ],
)
def test_a_recipe_cannot_leave_its_repository(
    repository: Repository,
    cache: Path,
    problems: Callable[..., dict[str, Problem]],
    path: str,
    where: str,
    message: str,
) -> None:
    found = problems(load_recipe, repository.named(repository.first, path))
    assert message in found[where].message
    assert found[where].hint


@pytest.mark.parametrize(
    ("commit", "path", "kind", "message", "hint"),
    [
        ("v1", "team/shared.yaml", UsageError, "got 'v1', expected the hash of a commit", "git ls-remote"),
        ("main", "team/shared.yaml", UsageError, "branches and tags can move", "main"),
        ("abcdef1", "team/shared.yaml", InputError, "has no commit 'abcdef1'", "git ls-remote"),
        ("0" * 40, "team/shared.yaml", InputError, "has no commit", "git ls-remote"),
        ("FIRST", "team/none.yaml", UsageError, "has no file 'team/none.yaml'", "did you mean 'nested.yaml'"),
        ("FIRST", "team/linked.yaml", UsageError, "has no file 'team/linked.yaml'", ""),
        ("FIRST", "nowhere/a.yaml", InputError, "has no folder 'nowhere'", "after '#'"),
        ("FIRST", "", UsageError, "expected a YAML file", "git+URL@COMMIT#PATH"),
        ("FIRST", "team/lists/classes.txt", UsageError, "expected a YAML file", ""),
        ("FIRST", "../a.yaml", UsageError, "expected a YAML file", ""),
        ("FIRST", "/etc/a.yaml", UsageError, "expected a YAML file", ""),
    ],
)
def test_what_is_not_a_recipe_of_a_commit_is_refused(
    repository: Repository, cache: Path, commit: str, path: str, kind: type[VitslimError], message: str, hint: str
) -> None:
    with pytest.raises(kind) as caught:
        load_recipe(repository.named(commit.replace("FIRST", repository.first), path))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_annotated_tag_is_not_a_commit(repository: Repository, cache: Path) -> None:
    tag = git(repository.bare, "rev-parse", "v2")
    with pytest.raises(InputError, match="has no commit"):
        load_recipe(repository.named(tag))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("git+https://example.com/r.git#a.yaml", "without a commit"),
        ("git+ssh://git@example.com/r.git#a.yaml", "without a commit"),
        ("git+", "without a commit"),
        ("git+file:///a\0b@0123456#a.yaml", "expected git+URL@COMMIT#PATH"),
        ("git+file:///a\x1b[2J@0123456#a.yaml", "expected git+URL@COMMIT#PATH"),
        ("git+http://example.com/r.git@0123456#a.yaml", "expected https://"),
        ("git+git@example.com:r.git@0123456#a.yaml", "expected https://"),
        ("git+ext::sh -c touch% x@0123456#a.yaml", "expected https://"),
        ("git+--upload-pack=x@0123456#a.yaml", "expected https://"),
        ("git+ssh://-oProxyCommand=x/r@0123456#a.yaml", "expected https://"),
        ("git+https://me:password@example.com/r@0123456#a.yaml", "without a password"),
        ("git+file://relative@0123456#a.yaml", "expected https://"),
        ("git+https://example.com/r@-0123456#a.yaml", "expected the hash of a commit"),
        ("git+https://example.com/r@0123456^{tree}#a.yaml", "expected the hash of a commit"),
        ("git+https://example.com/r@012345#a.yaml", "expected the hash of a commit"),
        ("git+https://example.com/r@0123456#a/../../b.yaml", "expected a YAML file"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_before_git_runs(
    cache: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError) as caught:
        load_recipe(source)
    assert message in caught.value.message
    assert caught.value.hint
    assert not cache.exists()


def test_a_repository_that_cannot_be_fetched_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(f"git+file://{tmp_path}/none.git@0123456#a.yaml")
    assert "git cannot fetch" in caught.value.message
    assert "git ls-remote" in caught.value.hint


def test_git_that_is_missing_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="git is not installed"):
        load_recipe("git+https://example.com/r@0123456#a.yaml")


def test_a_folder_above_the_limits_is_refused(
    repository: Repository, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (("MAX_ENTRIES", 3), ("MAX_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(git_repository, name, limit)
            with pytest.raises(InputError, match="has more than"):
                load_recipe(repository.named(repository.first))
    assert not list(cache.glob("recipes/git/*/*"))


def test_variables_of_a_surrounding_repository_have_no_effect(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert load_recipe(repository.named(repository.first), partial=True).name == "shared"


def test_hooks_and_submodules_of_the_source_do_not_run(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    for hook in ("post-checkout", "reference-transaction", "post-merge", "pre-auto-gc"):
        (template / hook).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (template / hook).chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template.parent))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(template))
    assert load_recipe(repository.named(repository.first[:10]), partial=True).name == "shared"
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_cache_that_cannot_be_written_is_named(repository: Repository, cache: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        load_recipe(repository.named(repository.first))


def test_a_cache_path_that_is_a_file_is_named(repository: Repository, cache: Path) -> None:
    cache.parent.write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        load_recipe(repository.named(repository.first))


def test_messages_show_no_password(cache: Path) -> None:
    for source in ("git+https://me:secret@h/r@0123456#a.yaml", "git+https://me:secret@h/r#a.yaml"):
        with pytest.raises(UsageError) as caught:
            load_recipe(source)
        assert "secret" not in caught.value.message + caught.value.hint


def test_a_missing_image_folder_of_a_shared_recipe_is_asked_for(repository: Repository, cache: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(repository.named(repository.first))
    assert "--set data.root=DIR" in caught.value.problems[0].hint
