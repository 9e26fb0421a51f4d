"""Fields of a settings dataclass: what they mean, and the smallest values that they take."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import is_dataclass
from typing import Any

from embedcomp.errors import BadSettings


def meanings(settings: type[Any]) -> dict[str, str]:
    """The comment beside each field; one that goes on stands alone on the lines below."""
    found: dict[str, str] = {}
    for base in reversed(settings.__bases__):
        found |= meanings(base) if is_dataclass(base) else {}
    name = ""
    for line in inspect.getsource(settings).splitlines():
        if match := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
            name = match[1]
            found[name] = match[2] or ""
        elif match := re.match(r"    # (.*)", line):
            found[name] += f" {match[1]}"
    return found


def refuse_below(settings: object, **smallest: float) -> None:
    """Refuse numbers that are too small, or are none; fields that are None are left open.

    Args:
        smallest: by field, the smallest number that it takes.

    Raises:
        BadSettings: a field is smaller, or is not finite.
    """
    for name, least in smallest.items():
        value = getattr(settings, name)
        if value is not None and not least <= value < math.inf:
            raise BadSettings(f"{name} is {value}, but must be {least} or more")
