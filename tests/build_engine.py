"""Builds the compiled engine of the tree that it is run in, with flags after those of setup.py.

`python -m tests.build_engine -O0` takes seconds instead of minutes.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

QUICKLY = ("-O0", "-w")


def build(tree: Path, flags: Sequence[str]) -> None:
    """Put the engine of another tree in its place; what is wrong with it is shown."""
    subprocess.run([sys.executable, "-m", "tests.build_engine", *flags], cwd=tree, check=True)


def main(flags: Sequence[str]) -> None:
    importlib.import_module("setuptools")  # brings distutils, which Python 3.12 has no more
    from distutils.core import run_setup

    setup = run_setup("setup.py", ["-q", "build_ext", "--inplace", "--force"], "commandline")
    for extension in setup.ext_modules:
        extension.optional = False  # else a compiler's error would leave the engine as it was
        extension.extra_compile_args += flags
        extension.extra_link_args += flags
    setup.run_commands()


if __name__ == "__main__":
    main(sys.argv[1:])
