"""What the fields of a settings dataclass mean, as the comments beside them say it."""

from __future__ import annotations

import inspect
import re
from typing import Any


def meanings(settings: type[Any]) -> dict[str, str]:
    """The comment beside each field; one that goes on stands alone on the lines below."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.getsource(settings).splitlines():
        if match := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
            name = match[1]
            found[name] = match[2] or ""
        elif match := re.match(r"    # (.*)", line):
            found[name] += f" {match[1]}"
    return found
