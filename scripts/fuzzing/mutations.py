"""Change valid files at random: their bytes, or the values of their documents."""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, -(2**63))
ODD = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "\0",
    "x" * 5000, "../../etc/passwd", "/etc/passwd", "\x1b[31m", "\u202e", "\ud800", "nan", "1e5", "2:4", [], {}, [[]],
    [None], {"": None}, {"a": {"b": {"c": []}}}, ["a"] * 1000,
)  # fmt: skip
"""Values that readers must refuse or take, but never fail on."""


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """Return the bytes with one to eight random changes."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        _change_bytes(found, random)
    return bytes(found)


def _change_bytes(data: bytearray, random: Random) -> None:
    place = random.randrange(len(data) + 1)
    end = min(len(data), place + random.choice((1, 2, 4, 16, 64)))
    match random.randrange(7):
        case 0:
            data[place:end] = bytes(random.randrange(256) for _ in range(end - place))
        case 1 if place < len(data):
            data[place] ^= 1 << random.randrange(8)
        case 2:
            data[place : place + 4] = struct.pack("<I", random.choice(NUMBERS) % 2**32)
        case 3:
            data[place : place + 8] = struct.pack("<Q", random.choice(NUMBERS) % 2**64)
        case 4:
            del data[place:end]
        case 5:
            data[place:place] = data[place:end] * random.choice((1, 2, 100))
        case _ if random.random() < 0.2:
            del data[place:]


def mutated_document(document: Any, random: Random, words: Sequence[str] = ()) -> Any:
    """Return a copy of a document of mappings and lists with one to four random changes.

    words: keys and texts that mean something to the reader.
    """
    found = copy.deepcopy(document)
    for _ in range(random.choice((1, 1, 2, 4))):
        holders = [one for one in _containers(found) if one]
        if holders:
            _change_value(random.choice(holders), random, words)
    return found


def _containers(value: Any) -> list[Any]:
    """Return all mappings and lists in a document."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value] if isinstance(value, dict | list) else []
    return own + [found for one in inner for found in _containers(one)]


def _change_value(holder: Any, random: Random, words: Sequence[str]) -> None:
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key, other = random.choice(keys), random.choice(keys)
    match random.randrange(7):
        case 0 | 1:
            holder[key] = copy.deepcopy(random.choice(ODD))
        case 2:
            del holder[key]
        case 3:
            holder[key] = copy.deepcopy(holder[other])
        case 4:
            holder[key] = [holder[key]] if random.random() < 0.5 else {"key": holder[key]}
        case 5 if isinstance(holder[key], int | float):
            holder[key] = random.choice(NUMBERS)
        case _ if words and isinstance(holder, dict):
            holder[random.choice(words)] = copy.deepcopy(random.choice((*ODD, *words)))
