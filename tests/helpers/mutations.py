"""Seeded mutations of JSON values and of bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x", "0",
    "../../etc", "/dev/zero", "\x1b[2J", "\ud800", "a\nb", "x" * 5000, [], {}, [[]], [None], {"x": None}, [1, 2, 3],
    {"kind": "x"}, "nan", "-1", "\x00",
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (container, key) of a JSON value."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from places(part)


def mutated_value(value: Any, draw: random.Random) -> Any:
    """A copy with one entry replaced, removed, doubled or swapped with another."""
    changed = copy.deepcopy(value)
    found = list(places(changed))
    container, key = draw.choice(found)
    match draw.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        case 2:
            other, place = draw.choice(found)
            container[key] = copy.deepcopy(other[place])
        case _:
            container[key] = copy.deepcopy(draw.choice(STRANGE))
    return changed


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """A copy with a few bits flipped, cut short, or with a part repeated, removed or zeroed."""
    data = bytearray(content)
    start = draw.randrange(max(1, len(data)))
    end = start + draw.randrange(1, 64)
    match draw.randrange(6):
        case 0:
            del data[start:]
        case 1:
            del data[start:end]
        case 2:
            data[start:start] = data[start:end]
        case 3:
            data[start:end] = bytes(len(data[start:end]))
        case _:
            for _ in range(draw.randrange(1, 4)):
                flip(data, draw.randrange(8 * len(data)))
    return bytes(data)


def flip(data: bytearray, bit: int) -> None:
    """Flip one bit in place."""
    data[bit // 8] ^= 1 << bit % 8


def mutated_json(value: Any, draw: random.Random) -> bytes:
    """The text of a JSON value of which the value or the text was mutated."""
    if draw.random() < 0.75:
        return json.dumps(mutated_value(value, draw)).encode()
    return mutated_bytes(json.dumps(value).encode(), draw)
