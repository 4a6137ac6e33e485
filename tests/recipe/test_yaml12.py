"""YAML 1.2 as recipes use it, and hostile files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitslim.errors import Problem, RecipeError, UsageError
from vitslim.recipe.document.yaml12 import MAX_BYTES, MAX_DEPTH, MAX_VALUES, dump_yaml, parse_yaml, read_yaml

Problems = Callable[..., dict[str, Problem]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5), ("1E3", 1000.0), (".5", 0.5), ("-1.", -1.0), ("+7", 7), ("012", 12), ("0o14", 12), ("0x1F", 31),
        (".inf", math.inf), ("-.INF", -math.inf), ("true", True), ("False", False), ("null", None), ("~", None),
        ("2:4", "2:4"), ("off", "off"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"), ("1:30:00", "1:30:00"), ("0b11", "0b11"), ("nan", "nan"), ("1e", "1e"), ("tRue", "tRue"),
        ("'5e-5'", "5e-5"), ('"true"', "true"), ("onnxruntime:cpu", "onnxruntime:cpu"), ("<<", "<<"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    parsed = parse_yaml(f"key: {text}\n")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_collections_comments_and_blocks() -> None:
    text = "# comment\na: [1, {b: 2:4}]\n'off': >\n  folded\n  text\n1: x\nempty:\n"
    assert parse_yaml(text) == {"a": [1, {"b": "2:4"}], "off": "folded text\n", "1": "x", "empty": None}


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a: [1, 2\nb: 3\n", "line 2, column 2", "not valid YAML"),
        ("a: 'open\n", "line 2, column 1", "not valid YAML"),
        ("a: b: c\n", "line 1, column 5", "not valid YAML"),
        ("a:\n\t- b\n", "line 2, column 1", "tab"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1", "'a' occurs twice"),
        ("a: {b: 1, b: 2}\n", "line 1, column 11", "'b' occurs twice"),
        ("a: &x 1\n", "line 1, column 4", "anchor '&x'"),
        ("a: *x\n", "line 1, column 4", "alias '*x'"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1, column 4", "tag"),
        ("a: !!binary aGVsbG8=\n", "line 1, column 4", "tag"),
        ("a: ! b\n", "line 1, column 4", "tag"),
        ("? [1, 2]\n: x\n", "line 1, column 3", "key that is not text"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "second document"),
        ("a: 1\nb: \x07\n", "line 2", "control character"),
        ("", "", "empty"),
        ("# only a comment\n", "", "empty"),
    ],
)
def test_refusals_name_the_place(problems: Problems, text: str, where: str, message: str) -> None:
    found = problems(parse_yaml, text)
    assert list(found) == [where]
    assert message in found[where].message
    assert found[where].hint


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_laughs(), "anchor '&a'"),
        ("a: [" + "x, " * MAX_VALUES + "]", f"more than {MAX_VALUES} values"),
        ("[" * (MAX_BYTES - 1), f"deeper than {MAX_DEPTH}"),
        ("{a: " * 200_000, f"deeper than {MAX_DEPTH}"),
        ("- " * 400_000, f"deeper than {MAX_DEPTH}"),
        ("? " * 400_000, "key that is not text"),
        ("x" * (MAX_BYTES + 10), "larger than 1 MB"),
    ],
    ids=["laughs", "values", "flow", "mappings", "block", "keys", "size"],
)
def test_expanding_documents_are_refused_quickly(
    problems: Problems, write: Callable[..., Path], text: str, message: str
) -> None:
    path = write("bomb.yaml", text)
    start = time.process_time()
    found = problems(read_yaml, path)
    assert time.process_time() - start < 5
    (problem,) = found.values()
    assert message in problem.message


def test_a_huge_number_stays_text() -> None:
    digits = "9" * 10_000
    assert parse_yaml(f"a: {digits}") == {"a": digits}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"\x80abc", "name: é".encode("latin-1")])
def test_a_file_that_is_not_utf8(problems: Problems, write: Callable[..., Path], content: bytes) -> None:
    assert "UTF-8" in problems(read_yaml, write("bad.yaml", content))[""].message


def test_a_byte_order_mark_is_no_content(write: Callable[..., Path]) -> None:
    assert read_yaml(write("bom.yaml", b"\xef\xbb\xbfa: 1\n")) == {"a": 1}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_yaml(tmp_path)


@given(st.text(max_size=60))
def test_any_text_gives_a_value_or_a_recipe_error(text: str) -> None:
    try:
        parse_yaml(text)
    except RecipeError as error:
        assert len(error.problems) == 1


_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])) | st.sampled_from(
    ["5e-5", ".5e3", "true", "null", "", "2:4", "off", "1_0", "0o7", "2024-01-01", "- a", "a: b", "#", "*a", "~", "0x1"]
)
_VALUES = st.recursive(
    _SCALARS | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(_TEXT, _VALUES, max_size=4))
def test_what_is_written_reads_back(value: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(value)) == value
