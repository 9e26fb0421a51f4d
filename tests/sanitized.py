"""Runs the engine's tests once with the engine built under AddressSanitizer and UBSan.

`python -m tests.sanitized [TEST ...]` builds it in a copy of the tree and runs the tests there, by
default the engine's own. A read or write beyond an array, a misaligned load, an overflow or a shift
too far ends the run with where it happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.build_engine import build
from tests.mutate import copy_of_the_tree

TESTS = (  # what scores on many kinds of inputs; tests of exports take hours and no other path
    *(f"tests/engine/test_{name}.py" for name in ("engine", "look_up", "not_finite", "requests")),
    *(f"tests/scorer/test_{name}.py" for name in ("odd_inputs", "random_inputs", "own_models")),
    "tests/log/test_known.py",
    "tests/serving/test_messages.py",
    "tests/storage",
    "tests/modules",
)
CHECKS = "address,undefined,float-cast-overflow"
FLAGS = (
    *("-O0", "-g", "-w", "-fno-omit-frame-pointer"),
    *(f"-fsanitize={CHECKS}", f"-fno-sanitize-recover={CHECKS}"),
)
# What ASan intercepts is loaded before Python; the C++ library too, or it misses exceptions.
PRELOADED = ("libasan.so", "libstdc++.so")


def environment(tree: Path) -> dict[str, str]:
    """What a sanitized library needs of the Python that loads it.

    Python's own small objects come from malloc too, so that ASan sees where each ends. Leaks are
    left out: what Python and torch keep until their end looks like one.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": " ".join(_found(name) for name in PRELOADED),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _found(library: str) -> str:
    asked = [os.environ.get("CXX", "g++"), f"-print-file-name={library}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main(tests: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        copy_of_the_tree(tree)
        build(tree, FLAGS)
        # sanitizers write past what pytest captures of Python; the matrix is run too
        pytest = [sys.executable, "-m", "pytest", "--capture=sys", "-m", "", *(tests or TESTS)]
        return subprocess.run(pytest, cwd=tree, env=environment(tree), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
