"""Installing where the engine cannot be compiled: it goes on, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "embedcomp/support/version.py")
ENGINE = ("engine.cpp", "engine.h", "kernels.inc", "__init__.py")


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_a_build_without_a_compiler_goes_on_and_says_so_and_leaves_no_old_engine(
    tmp_path: Path, compiler: str
) -> None:
    scoring = tmp_path / "embedcomp/kernels"
    scoring.mkdir(parents=True)
    for name in (*SOURCES, *(f"embedcomp/kernels/{name}" for name in ENGINE)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    old = scoring / "_engine.cpython-311-x86_64-linux-gnu.so"
    old.write_text("of other sources")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"],
        cwd=tmp_path,
        env={**os.environ, "CXX": compiler, "CC": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "THE COMPILED ENGINE WAS NOT BUILT" in done.stderr and compiler in done.stderr
    assert "install a C++17 compiler" in done.stderr
    assert not old.exists()
