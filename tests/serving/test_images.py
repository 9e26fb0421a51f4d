"""The images have what they need and no more. No engine for containers is needed to see that."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from manifests import ROOT
from typer.testing import CliRunner

from embedcomp.cli.main import app
from embedcomp.support.files import cache_folder

Instruction = tuple[str, str]
BUILT = ("__pycache__", "*.so", "*.egg-info", "build", ".venv", ".git", "wire", "demo_out")


def stages() -> dict[str, list[Instruction]]:
    """Instructions of each stage of the Dockerfile, by its name."""
    text = re.sub(r"^#.*\n", "", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, list[Instruction]] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.rpartition(" AS ")[2]
            found[name] = []
        if word:
            found[name].append((word, rest))
    return found


def given(stage: str, word: str) -> list[str]:
    return [rest for said, rest in stages()[stage] if said == word]


def test_the_serving_image_has_no_compiler_and_installs_nothing_itself() -> None:
    assert given("serve", "FROM") == ["python:3.11-slim AS serve"]
    for one in given("serve", "RUN"):
        assert not re.search(r"\b(apt-get|pip|g\+\+)", one)
    assert given("serve", "COPY") == ["--from=serving /opt/embedcomp /opt/embedcomp"]
    (installed,) = given("serving", "RUN")
    assert "[serve]" in installed and "-c constraints.txt" in installed


@pytest.mark.parametrize("stage", ["serve", "jobs"])
def test_an_image_is_not_run_by_root_and_its_command_gets_signals(stage: str) -> None:
    (user,) = given(stage, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # numbers, which Kubernetes can tell from root
    for word in ("ENTRYPOINT", "CMD"):
        for one in given(stage, word):
            assert isinstance(json.loads(one), list)  # no shell stands before the process


def test_the_default_command_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    (entry,), (words,) = given("serve", "ENTRYPOINT"), given("serve", "CMD")
    assert json.loads(entry) == ["embedcomp"]
    arguments = [str(tmp_path) if word == "/models" else word for word in json.loads(words)]
    result = CliRunner().invoke(app, arguments)
    assert f"{tmp_path} holds no model" in str(result.exception)  # all else was understood


def test_known_ids_are_kept_where_anybody_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    (variables,) = given("serve", "ENV")
    for name, value in (word.split("=", 1) for word in shlex.split(variables)):
        if name.startswith("XDG"):
            monkeypatch.setenv(name, value)
    assert f"mkdir -m 1777 {cache_folder()}" in given("serve", "RUN")
    assert str(cache_folder()) == "/var/cache/embedcomp"


@pytest.mark.slow
def test_what_is_copied_gives_the_whole_wheel(tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for line in given("wheel", "COPY"):
        *sources, target = line.split()
        for source in sources:
            _copy(ROOT / source, copied / (source if target == "./" else target))
    for name in ("pyproject.toml", "constraints.txt"):
        assert (copied / name).exists()
    kept = _kept_by_dockerignore()
    assert {path.name for path in copied.iterdir()} == kept
    assert _names(copied) == _names(_whole(tmp_path / "whole"))


def _kept_by_dockerignore() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"  # nothing but what is named
    return {line[1:] for line in lines if line.startswith("!")}


def _whole(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*BUILT, "tests"))
    return folder


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*BUILT))
    else:
        shutil.copy(source, target)


def _names(tree: Path) -> list[str]:
    """Files of its wheel, without the engine, which takes a minute to compile."""
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tree / "wheels", tree]
    subprocess.run(
        [sys.executable, "-m", "pip", *map(str, words)],
        env=os.environ | {"CXX": "/bin/false", "CC": "/bin/false"},
        check=True,
        capture_output=True,
    )
    (wheel,) = (tree / "wheels").glob("*.whl")
    found = zipfile.ZipFile(wheel).namelist()
    for part in ("serving/wire/inference_pb2.py", "pipelines/run.py", "kernels/engine.cpp"):
        assert f"embedcomp/{part}" in found
    return sorted(found)
