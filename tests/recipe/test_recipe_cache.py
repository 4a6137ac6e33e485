"""The cache of shared recipes: names of files, and two processes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitslim.recipe.sources import cache_folder


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.yaml", ""), ("a/b-c_d.yaml", ""), ("a\\b", "backslash"), ("../a", "'..'"), ("a/../b", "'..'"),
        ("a//b", "empty"),
        ("/a", "absolute"), ("C:/a", "absolute"), ("a\0b", "control"), ("", "empty"), ("a/" * 8 + "b", "8 parts"),
        ("a" * 201, "200 characters"),
    ],
)  # fmt: skip
def test_names_of_shared_files(name: str, problem: str) -> None:
    found = cache_folder.name_problem(name)
    assert (problem in found) and bool(problem) == bool(found)


def test_the_first_of_two_processes_fills_the_cache(tmp_path: Path) -> None:
    with cache_folder.kept(tmp_path / "a" / "b") as slow:
        (slow / "file").write_text("slow")
        with cache_folder.kept(tmp_path / "a" / "b") as fast:
            (fast / "file").write_text("fast")
    assert (tmp_path / "a" / "b" / "file").read_text() == "fast"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
