"""Hostile archives, repositories and options of shared recipes: one message with a hint, and the exit code."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

RECIPE = "name: plain\nmodel: {timm: deit_tiny_patch16_224}\ndata: {kind: digits}\nstages: [export]\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def link(name: str) -> ZipInfo:
    entry = ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


ARCHIVES: dict[str, tuple[list[tuple[str | ZipInfo, str]], int, str]] = {
    "parent": ([("../evil.yaml", "x")], 5, "'..', '.' or an empty part in a path: '../evil.yaml'"),
    "absolute": ([("/etc/evil.yaml", "x")], 5, "an absolute path: '/etc/evil.yaml'"),
    "drive": ([("C:evil.yaml", "x")], 5, "an absolute path: 'C:evil.yaml'"),
    "backslash": ([("a\\evil.yaml", "x")], 5, "a backslash or a control character in a name"),
    "escape": ([("a\x1b[31mb", "x")], 5, "a backslash or a control character in a name"),
    "deep": ([("a/" * 20 + "b", "x")], 5, "a path of more than 8 parts"),
    "long": ([("n" * 5000, "x")], 5, "a name of more than 200 characters"),
    "link": ([(link("passwd"), "/etc/passwd")], 5, "a link or a special file: 'passwd'"),
    "twice": ([("A.txt", "x"), ("a.txt", "y")], 5, "an archive in which a name occurs twice"),
    "file-and-folder": ([("a", "x"), ("a/b", "y")], 5, "an archive in which a name occurs twice"),
    "many": ([(f"{number}", "") for number in range(2001)], 5, "an archive of more than 2000 entries"),
    "bomb": ([("big.txt", "0" * 5_000_000)], 5, "a compression ratio above 100: 'big.txt'"),
    "leaving": ([("recipe.yaml", RECIPE.replace("digits", "digits, classes: ../x"))], 2, "data.classes: got '../x'"),
    "absolute-path": ([("recipe.yaml", RECIPE + "extends: /etc/a.yaml\n")], 2, "extends: got '/etc/a.yaml'"),
    "nested": ([("recipe.yaml", RECIPE + "extends: b.zip\n")], 2, "cannot name another one"),
    "nested-git": ([("recipe.yaml", RECIPE + f"extends: git+file:///r@{COMMIT}#a.yaml\n")], 2, "cannot name another"),
    "itself": ([("recipe.yaml", RECIPE + "extends: recipe.yaml\n")], 2, "in a circle"),
    "missing-base": ([("recipe.yaml", RECIPE + "extends: base.yaml\n")], 2, "there is no recipe 'base.yaml'"),
    "alias": ([("recipe.yaml", "a: &a [x]\nb: *a\n")], 2, "anchors and aliases are not allowed"),
    "binary": ([("recipe.yaml", "\0\1\2")], 2, "control character"),
    "list": ([("recipe.yaml", "- a\n")], 2, "expected a mapping"),
}  # fmt: skip
"""Entries of an archive, exit code, and part of the message; a valid `recipe.yaml` is added where there is none."""

SOURCES = [
    ("none.zip", 2, "there is no recipe 'none.zip'"),
    ("folder.zip", 2, "'folder.zip' is a folder"),
    ("empty.zip", 5, "'empty.zip' is damaged, or not a zip archive"),
    ("text.zip", 5, "'text.zip' is damaged, or not a zip archive"),
    ("cut.zip", 5, "'cut.zip' is damaged, or not a zip archive"),
    ("git+https://h/r@main#a.yaml", 2, "got 'main', expected the hash of a commit"),
    ("git+https://h/r@v1.0#a.yaml", 2, "got 'v1.0', expected the hash of a commit"),
    ("git+https://h/r#a.yaml", 2, "without a commit"),
    (f"git+https://h/r@{COMMIT}", 2, "expected a YAML file of the repository"),
    (f"git+https://h/r@{COMMIT}#../a.yaml", 2, "expected a YAML file of the repository"),
    (f"git+https://h/r@{COMMIT}#a.py", 2, "expected a YAML file of the repository"),
    (f"git+http://h/r@{COMMIT}#a.yaml", 2, "expected https://, ssh:// or file:///"),
    (f"git+ext::sh -c id@{COMMIT}#a.yaml", 2, "expected https://, ssh:// or file:///"),
    (f"git+ssh://-oProxyCommand=id/r@{COMMIT}#a.yaml", 2, "expected https://, ssh:// or file:///"),
    (f"git+https://me:secret@h/r@{COMMIT}#a.yaml", 2, "without a password"),
    (f"git+file:///nowhere@{COMMIT}#a.yaml", 5, "git cannot fetch 'file:///nowhere'"),
]  # fmt: skip
"""Recipe on the command line, exit code, and part of the message."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with its own cache folder; nothing may be written beside them."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield work
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "cache"}


def check(vitslim: Callable[..., Any], source: str, code: int, message: str) -> None:
    for command in (("plan", source, "--no-trace"), ("recipes", "show", source)):
        outcome = vitslim(*command)
        assert outcome.code == code, outcome.err
        assert message in outcome.err
        assert "hint: " in outcome.err
        assert "Traceback" not in outcome.err
        assert "unexpected" not in outcome.err
        assert "\x1b" not in outcome.err


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives_are_refused(vitslim: Callable[..., Any], here: Path, name: str) -> None:
    entries, code, message = ARCHIVES[name]
    with ZipFile("shared.zip", "w", ZIP_DEFLATED) as archive:
        for entry, content in entries:
            info = ZipInfo("x") if isinstance(entry, str) else entry
            info.filename = entry if isinstance(entry, str) else entry.filename
            archive.writestr(info, content, ZIP_DEFLATED)
        if "recipe.yaml" not in archive.namelist():
            archive.writestr("recipe.yaml", RECIPE)
    check(vitslim, "shared.zip", code, message)


@pytest.mark.parametrize(("source", "code", "message"), SOURCES, ids=[source for source, _, _ in SOURCES])
def test_other_sources_are_refused(
    vitslim: Callable[..., Any], here: Path, source: str, code: int, message: str
) -> None:
    Path("folder.zip").mkdir()
    Path("empty.zip").write_bytes(b"")
    Path("text.zip").write_text(RECIPE)
    with ZipFile("cut.zip", "w") as archive:
        archive.writestr("recipe.yaml", RECIPE)
    Path("cut.zip").write_bytes(Path("cut.zip").read_bytes()[:-30])
    check(vitslim, source, code, message)


def test_the_hint_of_a_branch_is_a_command_that_prints_its_commit(vitslim: Callable[..., Any], here: Path) -> None:
    for command in (
        ["init", "--quiet", "--bare", "--initial-branch=main", "r.git"],
        ["clone", "--quiet", "r.git", "copy"],
        ["-C", "copy", "-c", "user.name=T", "-c", "user.email=t@host", "commit", "-q", "--allow-empty", "-m", "one"],
        ["-C", "copy", "push", "--quiet", "origin", "HEAD:main"],
    ):  # fmt: skip
        subprocess.run(["git", *command], check=True, capture_output=True)
    error = vitslim("plan", f"git+file://{here}/r.git@main#a.yaml", "--no-trace").err
    command = error.partition("hint: `")[2].partition("`")[0]
    printed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    head = subprocess.run(["git", "-C", "copy", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert printed.split()[0] == head.strip()


def test_diff_and_pack_print_data_on_stdout_only(vitslim: Callable[..., Any], here: Path) -> None:
    packed = vitslim("recipes", "pack", "quickstart")
    assert packed.code == 0
    assert packed.out == "recipe.yaml\n"
    assert "left out: " not in packed.err
    assert vitslim("recipes", "diff", "quickstart", "quickstart.zip", "--format", "json").out == "[]\n"
    table = vitslim("recipes", "diff", "tps-etps", "tps-dtps").out
    assert ["stages.1.distill.train.mixup", "0.0", "0.8"] in [line.split() for line in table.splitlines()]
    refused = vitslim("recipes", "pack", "quickstart", "--out", "none/a.zip")
    assert refused.code == 5
    assert "cannot be written" in refused.err
