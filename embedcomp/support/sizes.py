"""Sizes as people write them."""

from __future__ import annotations

import re

from embedcomp.errors import BadSettings

NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
SIZES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse(text: str) -> tuple[float, str]:
    """A number and the unit behind it, in small letters; 0 where it is written in no such way."""
    match = re.fullmatch(rf"{NUMBER}\s*([a-zA-Z]*|%)", text.strip().replace(",", ""))
    return (float(match[1]), match[2].lower()) if match else (0.0, "")


def in_bytes(name: str, text: str) -> int:
    """Bytes of the setting `name`, written as "4MiB", "300kB" or "123456".

    Raises:
        BadSettings: it is none of these, or less than a byte.
    """
    number, unit = parse(text)
    if unit not in SIZES or number * SIZES[unit] < 1:
        raise BadSettings(f"{name} is {text!r}, but must be a size; write 1GiB, 500MB or bytes")
    return int(number * SIZES[unit])
