"""The cache of shared recipes: names of files."""

from __future__ import annotations

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
