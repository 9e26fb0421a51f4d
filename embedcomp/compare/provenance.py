"""With what and on what a result was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedcomp.support.version import __version__

PACKAGES = ("numpy", "torch", "fbgemm-gpu-cpu", "torchrec", "pyarrow", "pandas")


def provenance() -> dict[str, Any]:
    """Versions, machine and date, as result files keep them."""
    return {
        "versions": {"embedcomp": own_version(), **versions(PACKAGES)},
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def own_version() -> str:
    """Version of embedcomp, with the commit in a checkout, and "+" if files differ from it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__} {found.stdout.strip()}"


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of installed packages, and of Python; None: not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def machine() -> dict[str, Any]:
    """CPU model, cores that may be used, memory in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
