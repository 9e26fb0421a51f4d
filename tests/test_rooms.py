"""The table of rooms in docs/architecture.md holds: who imports whom, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "architecture.md"
TOPS = ("embedcomp", "pipelines", "serving")
EVERYTHING = "everything"
LARGEST = 0.15  # of all lines, in one room
# what a room must do without: the libraries that take seconds to import, or belong to another one
WITHOUT = {
    "embedcomp": ("ray", "grpc"),
    "serving": ("ray", "torch"),
    "pipelines": ("grpc",),
    "log": ("torch.nn",),
}


@pytest.mark.slow
def test_a_room_imports_only_what_its_line_says() -> None:
    allowed = _allowed()
    arrows = _arrows()
    assert {room for arrow in arrows for room in arrow} <= allowed.keys()
    for room, other in sorted(arrows):
        assert other in allowed[room], f"{room} imports {other}: {arrows[room, other]}"


@pytest.mark.slow
def test_the_table_has_no_arrow_that_is_not_there() -> None:
    arrows = _arrows()
    for room, others in _allowed().items():
        if _said(room) != EVERYTHING:
            for other in others:
                assert (room, other) in arrows, f"{room} does not import {other}"


@pytest.mark.slow
def test_there_is_no_circle_of_rooms() -> None:
    _refuse_circle(_arrows())


def test_there_is_no_circle_of_files() -> None:
    _refuse_circle({(file, other): file for file, others in _files().items() for other in others})


def test_no_room_has_most_of_the_lines() -> None:
    lines: dict[str, int] = {}
    for name, path in _paths().items():
        room = _room(name)
        lines[room] = lines.get(room, 0) + len(path.read_text().splitlines())
    room = max(lines, key=lambda name: lines[name])
    assert lines[room] < LARGEST * sum(lines.values()), f"{room}: {lines[room]} lines"


@pytest.mark.parametrize("room", sorted(WITHOUT))
def test_a_room_does_without_these_libraries(room: str) -> None:
    for name, path in _paths().items():
        everywhere = room == "embedcomp" and _room(name) not in TOPS[1:]
        if everywhere or room == _room(name):
            for imported in _imports(path):
                wrong = [w for w in WITHOUT[room] if f"{imported}.".startswith(f"{w}.")]
                assert not wrong, f"{path}: {imported}"


@pytest.mark.slow
def test_only_the_command_line_knows_of_comparisons() -> None:
    assert {room for room, other in _arrows() if other == "compare"} == {"cli"}


def test_a_circle_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"a -> b -> a|b -> a -> b"):
        _refuse_circle({("a", "b"): "", ("b", "a"): "", ("a", "c"): ""})


def _refuse_circle(arrows: Mapping[tuple[str, str], str]) -> None:
    graph: dict[str, set[str]] = {}
    for one, other in arrows:
        graph.setdefault(one, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


def _rows() -> Iterator[list[str]]:
    """Cells of the table's lines."""
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            yield cells


def _said(room: str) -> str:
    return next(may for name, _, may in _rows() if _named(name) == room)


def _allowed() -> dict[str, set[str]]:
    """Rooms that each room may import."""
    said = {_named(name): may for name, _, may in _rows()}
    return {
        room: set(said)
        if may == EVERYTHING
        else {other.strip() for other in may.split(",") if other.strip() not in ("", "nothing")}
        for room, may in said.items()
    }


def _named(cell: str) -> str:
    """A room by its cell, such as `embedcomp/log/`."""
    return cell.strip("`").strip("/").split("/")[-1].removesuffix(".py")


def _paths() -> dict[str, Path]:
    """Files by module name; generated ones are nobody's."""
    found = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            linked = top == "embedcomp" and parts[1] in TOPS  # embedcomp/serving is ../serving
            if "wire" not in parts and not linked:
                whole = parts if top == "embedcomp" else ("embedcomp", *parts)
                found[".".join(whole).removesuffix(".__init__")] = path
    return found


def _room(module: str) -> str:
    """A folder of embedcomp; a file that lies in none is its own room, but for __main__."""
    parts = module.removesuffix(".__main__").split(".")
    return parts[-1] if len(parts) == 1 else parts[1]


def _files() -> dict[str, set[str]]:
    """Which files each file imports, wherever in it that is."""
    paths = _paths()
    return {
        name: {found for found in (_file(n, paths) for n in _imports(path)) if found} - {name}
        for name, path in paths.items()
    }


def _file(name: str, paths: Mapping[str, Path]) -> str | None:
    """The file that `from a.b import c` reads: a.b.c where there is one, else a.b."""
    whole, _, _ = name.rpartition(".")
    return name if name in paths else whole if whole in paths else None


def _arrows() -> dict[tuple[str, str], str]:
    """Rooms that import rooms, with a file that does."""
    return {
        (_room(file), _room(other)): f"{file} imports {other}"
        for file, others in _files().items()
        for other in others
        if _room(file) != _room(other)
    }


def _imports(file: Path) -> list[str]:
    """Dotted names, those that are imported from a module behind its own."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
