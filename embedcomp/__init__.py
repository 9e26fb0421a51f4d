"""embedcomp makes click-through-rate models smaller and faster, and proves that quality held."""

from __future__ import annotations

from embedcomp.installed import check

__version__ = "0.1.0"

check()
