"""Messages made wrong: by their bytes, and as what they are, protocol buffers or JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 100_000  # of a mutated message; what is larger is tried by tests of its own
HUGE = (0, 1, 127, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
ODD_BYTES = (
    *(b"", b"\0", b"\xff", b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc"),
    *((1 << 31).to_bytes(4, "little"), b"\xff" * 4, b"\xff\xff\xff\x7f" * 2, b"\xff" * 8),
    *(b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\0\0\0\0\0\x80", b"\x01\0\0\0" * 50),
    *(b"\x80\x94\xeb\xdc\x03\0", b"\0\x80\x94\xeb\xdc\x03", b"\xff" * 9 + b"\1"),  # shapes
    *(b"[" * 5_000, b'{"version_policy":{"specific":{"versions":[1e999]}}}', b'"\\ud800"'),
)


def of_bytes(message: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """Bits flipped, bytes put in or taken out, the end cut off or that of another message."""
    changed = bytearray(message)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randint(0, len(changed)), draw.randint(1, 9)
        match draw.randrange(7):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << draw.randrange(8)
            case 1 if changed:
                changed[at % len(changed)] = draw.randrange(256)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = draw.choice((draw.randbytes(length), draw.choice(ODD_BYTES)))
            case 4:
                changed[at:at] = changed[at : at + 4 * length] * draw.randint(1, 20)
            case 5:
                del changed[at:]
            case _:
                other = draw.choice(others)
                changed[at:] = other[draw.randint(0, len(other)) :]
    return bytes(changed[:MOST_BYTES])


# ---- protocol buffers -------------------------------------------------------------------------


@dataclass
class Field:
    """A field of a message: its number, its type on the wire, and what it holds.

    length: that is claimed for it; None: its own.
    """

    number: int
    wire_type: int
    value: int | bytes | list[Field]
    length: int | None = None


def of_fields(message: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """A message whose fields have other types, numbers or lengths, are doubled, dropped or nested,
    or are those of another message."""
    fields = _parsed(message) or []
    for _ in range(draw.randint(1, 3)):
        lists = _lists(fields)
        held = draw.choice([one for one in lists if one] or [fields])
        if not held:
            break
        _change(held, draw.randrange(len(held)), others, draw)
    return _written(fields, draw)[:MOST_BYTES]


def _change(held: list[Field], at: int, others: Sequence[bytes], draw: random.Random) -> None:
    field = held[at]
    match draw.randrange(10):
        case 0:
            field.wire_type = draw.randrange(8)
        case 1:
            field.number = draw.choice((draw.randint(0, 8), 15, 2**28, 2**29 - 1, 2**40))
        case 2:
            field.wire_type, field.value = 0, draw.choice(HUGE)
        case 3:
            field.length = draw.choice((*HUGE, draw.randint(0, 40)))
        case 4:
            held[at:at] = [field] * draw.randint(1, 30)
        case 5:
            del held[at]
        case 6:
            inside = draw.choice(_lists(_parsed(draw.choice(others)) or []))
            held.insert(draw.randint(0, len(held)), draw.choice(inside or [field]))
        case 7:
            for _ in range(draw.randint(1, 120)):
                held[at] = Field(field.number, 2, [held[at]])
        case 8:
            field.wire_type, field.value = 2, _odd(field.value, draw)
        case _:
            field.value = draw.choice(HUGE) if field.wire_type == 0 else _odd(field.value, draw)


def _odd(value: int | bytes | list[Field], draw: random.Random) -> bytes:
    """Other bytes, or some of these with others at their end, before them or in the middle."""
    own, odd = value if isinstance(value, bytes) else b"", draw.choice(ODD_BYTES)
    at = draw.randint(0, len(own))
    return draw.choice((odd, own + odd, odd + own, own[:at] + odd + own[at + len(odd) :], own[:at]))


def _lists(fields: list[Field]) -> list[list[Field]]:
    """Every list of fields in a message."""
    found = [fields]
    for field in fields:
        if isinstance(field.value, list):
            found += _lists(field.value)
    return found


def _parsed(message: bytes) -> list[Field] | None:
    """The fields of a message; None: it is none. What may be a message within it is taken as one.

    Only those that this module is given: fields of numbers and of bytes.
    """
    found, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 not in (0, 2) or key >> 3 == 0:
            return None
        value, at = _varint(message, at)
        if key & 7 == 0:
            found.append(Field(key >> 3, 0, value))
            continue
        inside = message[at : at + value]
        at += value
        if len(inside) != value:
            return None
        found.append(Field(key >> 3, 2, (_parsed(inside) if inside else None) or inside))
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    found = 0
    for shift in range(0, 64, 7):
        byte = message[at] if at < len(message) else 0
        found, at = found | (byte & 127) << shift, at + 1
        if byte < 128:
            break
    return found, at


def _written(fields: list[Field], draw: random.Random) -> bytes:
    found = bytearray()
    for field in fields:
        found += _as_varint(field.number << 3 | field.wire_type, draw)
        if isinstance(field.value, int):
            found += _as_varint(field.value, draw)
            continue
        inside = field.value if isinstance(field.value, bytes) else _written(field.value, draw)
        if field.wire_type == 2:
            found += _as_varint(len(inside) if field.length is None else field.length, draw)
        found += inside
    return bytes(found)


def _as_varint(value: int, draw: random.Random) -> bytes:
    """Seven bits a byte; one in hundreds has bytes that it does not need, or that it may not."""
    found = bytearray()
    while True:
        found.append(value & 127 | 128)
        value >>= 7
        if not value:
            break
    if draw.random() < 0.003:
        found += b"\x80" * draw.randint(1, 11)
        found.append(draw.choice((0, 0, 0, 1)))
    found[-1] &= 127
    return bytes(found)


# ---- JSON -------------------------------------------------------------------------------------

RAW = "\0raw\0"  # before what is written into the JSON as it is
ODD_VALUES = (
    *(None, True, "", "\ud800", "\0", "Zürich" * 100, -1, 0.5, 2**31, 2**63, 2**64, 10**400),
    *([], {}, [[]], [[1], 2], {"": None}, [None], list(range(50)), ["a", 1], -0.0, 1e300, 1e-320),
    *(f"{RAW}{text}" for text in ("NaN", "Infinity", "-Infinity", "1e400", "1e-400", "-0", "00")),
    *(f"{RAW}{text}" for text in ("[" * 500 + "]" * 500, "[" * 5_000, "1" * 5_000, '{"a":' * 900)),
    *(f"{RAW}{text}" for text in ('{"name":1,"name":"age"}', '"\\ud83d"', '"\\u0000"', "'a'")),
    *([1_000_000_000, 0], [0, 2**62], [2**62, 0], [2**40, 2**40], [2**64], [1, 1, 1], [[3]]),
)


def of_json(message: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """JSON with other values in it, or without some, or in another encoding."""
    document = json.loads(message)
    for _ in range(draw.randint(1, 3)):
        _put(document, draw)
    text = _as_json(document)
    if draw.random() < 0.02:
        encoding = draw.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1"))
        return text.encode(encoding, "replace")[:MOST_BYTES]
    return text.encode("utf-8", "surrogatepass")[:MOST_BYTES]


def _put(document: Any, draw: random.Random) -> None:
    """Change one of the values somewhere in a document."""
    held: Any = document
    while True:
        keys = list(held) if isinstance(held, dict) else list(range(len(held)))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(held[key], dict | list) or draw.random() < 0.15:
            break
        held = held[key]
    changes: list[Callable[[], Any]] = [
        lambda: held.__setitem__(key, deepcopy(draw.choice(ODD_VALUES))),
        lambda: held.pop(key),
        lambda: held.__setitem__(key, [held[key]] * draw.randint(0, 9)),
    ]
    if isinstance(held, list):
        changes.append(lambda: held.insert(key, held[key]))
    draw.choice(changes)()


def _as_json(value: Any) -> str:
    if isinstance(value, dict):
        inside = (f"{json.dumps(name)}:{_as_json(one)}" for name, one in value.items())
        return f"{{{','.join(inside)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_as_json, value))}]"
    if isinstance(value, str) and value.startswith(RAW):
        return value.removeprefix(RAW)
    return json.dumps(value)
