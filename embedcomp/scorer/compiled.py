"""Machine code of an exported program, by AOTInductor: a cache of this machine, never needed.

It lies in the user's cache folder and not in the artifact, so that no machine runs code that it did
not make itself; another torch or another CPU makes its own.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from embedcomp.engine.standalone import PROGRAM
from embedcomp.errors import BadModel
from embedcomp.support.files import cache_folder, replacing, sha256

Compiled = Callable[..., Any]  # called as the program is
MADE = "for any number of threads"  # how; another text makes all machine code anew


def cache_file(folder: Path) -> Path:
    """Where the machine code of an artifact's program is kept on this machine."""
    what = (MADE, sha256(folder / PROGRAM), torch.__version__, platform.machine(), *_cpu_features())
    key = hashlib.sha256("\n".join(what).encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.pt2"


def build(folder: Path, example: tuple[Any, ...]) -> Path:
    """Compile an artifact's program; takes half a minute. What is there already is kept.

    Args:
        example: arguments of the program, of two rows or more.

    Raises:
        BadModel: AOTInductor cannot compile it.
    """
    file = cache_file(folder)
    if file.exists():
        return file
    program = torch.export.load(folder / PROGRAM)
    program._example_inputs = example, {}  # it was saved without
    with replacing(file) as fresh:
        try:
            with torch._inductor.config.patch({"cpp.dynamic_threads": True}):  # of each call
                torch._inductor.aoti_compile_and_package(program, package_path=str(fresh))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BadModel(
                f"AOTInductor cannot compile {folder / PROGRAM} ({type(error).__name__}: "
                f"{reason[:300]}); it is scored without machine code"
            ) from error
    return file


def load(folder: Path) -> Compiled | None:
    """The machine code that `build` made here; None: there is none for this torch and CPU."""
    file = cache_file(folder)
    return torch._inductor.aoti_load_package(str(file)) if file.exists() else None


def _cpu_features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [platform.processor()]
    flags = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return sorted(flags[0].split()) if flags else [platform.processor()]
