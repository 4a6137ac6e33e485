"""A safe subset of YAML 1.2: plain values without tags, anchors and aliases.

ruamel.yaml splits the text into events; this module builds values from them by the core schema of YAML 1.2 (`5e-5` is a
number; `2:4`, `off` and `2024-01-01` are text). Refusing aliases and tags keeps a small file from expanding into a
large value. Limits of size, depth and count are enforced while the events are read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.representer import SafeRepresenter

from vitslim.errors import Problem, RecipeError, UsageError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 10_000

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY_OR_NAN = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST_NUMBER = 400


def read_yaml(path: Path) -> Any:
    """Read the value of a YAML file.

    Raises UsageError when the file cannot be read, RecipeError when it is not text, empty, larger than `MAX_BYTES`, or
    not plain YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}", "check the path and its permissions") from error
    if len(content) > MAX_BYTES:
        _refuse("", f"the file is larger than {MAX_BYTES // 1_000_000} MB", "a recipe is a page of text", str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        _refuse("", "the file is not UTF-8 text", "a recipe is a YAML file", str(path))
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str = "recipe") -> Any:
    """Parse a YAML text into None, bool, int, float, str, and lists and string-keyed dicts of them.

    Raises RecipeError, with line and column, for bad syntax, duplicate keys, aliases, anchors, tags, a second document,
    and values nested deeper than `MAX_DEPTH` or more than `MAX_VALUES` in number.
    """
    reader = _Reader(_events(text, source), source)
    return reader.document()


def dump_yaml(value: Any) -> str:
    """Return YAML that `parse_yaml` reads back as the same value. Keys keep their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = None
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 1000
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def plain_value(text: str) -> bool | int | float | str | None:
    """Return the value of an unquoted YAML 1.2 scalar."""
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text[0] in "tT"
    return text if len(text) > _LONGEST_NUMBER else _number(text)


def _number(text: str) -> int | float | str:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _INFINITY_OR_NAN.fullmatch(text) else text


class _Representer(SafeRepresenter):
    """Quotes every text that would otherwise be read back as another type."""


def _text(representer: _Representer, value: str) -> Any:
    plain = value[:1].isalnum() or value[:1] in {"_", "/", "."}
    style = None if plain and isinstance(plain_value(value), str) else '"'
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Representer.add_representer(str, _text)


def _events(text: str, source: str) -> Iterator[Any]:
    try:
        yield from YAML(typ="safe", pure=True).parse(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = str(error.problem or error.context or "unreadable").replace("\n", " ")
        if "'\\t'" in what:
            _refuse(_place(mark), "not valid YAML: a tab", "YAML indents with spaces", source)
        _refuse(_place(mark), f"not valid YAML: {what}", "check the indentation, quotes and brackets there", source)
    except YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        _refuse(f"line {line}", "not valid YAML: a control character", "a recipe is a text file", source)


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _refuse(where: str, message: str, hint: str, source: str) -> NoReturn:
    raise RecipeError([Problem(where, message, hint)], source)


class _Reader:
    """Builder of the value of one document from its events."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self.events = events
        self.source = source
        self.values = 0

    def document(self) -> Any:
        """Return the value of the only document."""
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), StreamEndEvent):
            _refuse("", "the file is empty", "`vitslim recipes new NAME` prints a recipe to start from", self.source)
        value = self._value(next(self.events), 0)
        next(self.events)  # the end of the document
        after = next(self.events)
        if isinstance(after, DocumentStartEvent):
            self._refuse(after, "a second document begins", "a recipe is one document: remove '---'")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        self._check(event, depth)
        if isinstance(event, ScalarEvent):
            return plain_value(event.value) if not event.style else event.value
        return self._mapping(depth) if isinstance(event, MappingStartEvent) else self._list(depth)

    def _list(self, depth: int) -> list[Any]:
        items = []
        while _is_value(event := next(self.events)):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while _is_value(event := next(self.events)):
            self._check(event, depth + 1)
            if not isinstance(event, ScalarEvent):
                self._refuse(event, "a key that is not text", "put quotes around text that begins with '{' or '['")
            if event.value in entries:
                self._refuse(event, f"the key '{event.value[:40]}' occurs twice", "remove one of the two")
            entries[event.value] = self._value(next(self.events), depth + 1)
        return entries

    def _check(self, event: Any, depth: int) -> None:
        self.values += 1
        if isinstance(event, AliasEvent):
            self._refuse(
                event, f"the alias '*{event.anchor}': anchors and aliases are not allowed", "write the value out"
            )
        if event.anchor is not None:
            self._refuse(
                event,
                f"the anchor '&{event.anchor}': anchors and aliases are not allowed",
                "put quotes around text with '&'",
            )
        if event.tag is not None:
            self._refuse(event, f"the tag '{event.tag}': tags are not allowed", "put quotes around text with '!'")
        if depth > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels", "a recipe needs no more than six")
        if self.values > MAX_VALUES:
            self._refuse(event, f"more than {MAX_VALUES} values", "a recipe is a page of text")

    def _refuse(self, event: Any, message: str, hint: str) -> NoReturn:
        _refuse(_place(event.start_mark), message, hint, self.source)


def _is_value(event: Any) -> bool:
    return isinstance(event, ScalarEvent | AliasEvent | MappingStartEvent | SequenceStartEvent)
