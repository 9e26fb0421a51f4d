"""Imports go one way: pipelines -> embedcomp <- serving."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "embedcomp/log": ("embedcomp.models", "embedcomp.train", "embedcomp.compress", "torch.nn"),
    "embedcomp/served": ("embedcomp.methods", "embedcomp.compress", "embedcomp.train"),
    "embedcomp/scoring": ("embedcomp.methods", "embedcomp.compress", "embedcomp.train"),
    "embedcomp/methods": ("embedcomp.methods", "embedcomp.compress.planner", "embedcomp.train"),
    "embedcomp/compare": ("embedcomp.cli", "embedcomp.progress"),
    "embedcomp": ("ray", "grpc", "pipelines", "serving"),
    "serving": ("ray", "torch", "pipelines", "embedcomp.compress", "embedcomp.train"),
    "pipelines": ("grpc",),
}
ALLOWED = {"embedcomp/cli": ("pipelines", "serving")}  # the command line opens every door


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    for file in sorted((ROOT / room).rglob("*.py")):
        place = file.relative_to(ROOT).parent.as_posix()
        for name in _imports(file):
            wrong = [bad for bad in FORBIDDEN[room] if name == bad or name.startswith(f"{bad}.")]
            assert not wrong or name.split(".")[0] in ALLOWED.get(place, ()), f"{file}: {name}"


def test_only_the_command_line_knows_of_comparisons() -> None:
    for file in sorted((ROOT / "embedcomp").rglob("*.py")):
        if file.relative_to(ROOT / "embedcomp").parts[0] not in ("cli", "compare"):
            wrong = [name for name in _imports(file) if name.startswith("embedcomp.compare")]
            assert not wrong, f"{file}: {wrong[0]}"


def _imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found
