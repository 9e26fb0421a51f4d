"""Write the figures of the documents as their records have them: `python -m benchmarks.figures`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.figures import record
from benchmarks.figures.page import Block, blocks
from benchmarks.figures.record import NotSo
from benchmarks.result import TOP
from embedcomp.compare.pictures import svg
from embedcomp.support.files import replacing

# In these every number is measured or said to be given; in others, what a comment stands above.
PAGES = (
    *("README.md", "docs/results.md", "docs/choosing.md", "docs/worth.md", "docs/training.md"),
    "docs/long_logs.md",
    "docs/scoring.md",
)
OTHERS = (
    *("docs/methods.md", "docs/architecture.md", "docs/serving.md", "docs/deploying.md"),
    "docs/sharding.md",
    "benchmarks/README.md",
)


def written(page: str, *, strict: bool = True) -> tuple[str, list[str]]:
    """A page with the figures of its records, and what could not be mended.

    Args:
        strict: every number in its prose has to be a record's or given.
    """
    found, problems = [], []
    for block, gap in blocks(page):
        try:
            text = _written(block, strict)
        except NotSo as problem:
            problems.append(f"{_beginning(block)}: {problem}")
            text = block.text
        found.append(block.mark + text + gap)
    return "".join(found), problems


def drawn(page: str) -> dict[str, str]:
    """The pictures of a page: the text of each SVG file, by the path that the page links.

    Raises:
        NotSo: a record is not there, or does not fit.
    """
    found = {}
    for block, _ in blocks(page):
        if block.kind == "picture":
            found[block.linked] = svg(_of_records(block))
    return found


def renamed(page: str, names: Sequence[str]) -> str:
    """A page that names the newest records of some benchmarks."""
    for name in names:
        latest = record.newest(name)
        page = re.sub(rf"(?<!\S){re.escape(name)}/\d{{4}}-[^\s;]+", lambda _, to=latest: to, page)
    return page


def _written(block: Block, strict: bool) -> str:
    if block.kind == "table":
        return "\n".join(_of_records(block))
    if block.kind == "figures":
        values = _of_records(block)
        if len(values) != len(block.figures):
            said = ", ".join(number[0] for number in block.figures)
            has = ", ".join(f"{value:.6g}" for value in values)
            raise NotSo(f"the text has the figures {said}; {block.source} gives {has}")
        return block.with_figures(values)
    if (strict or block.given) and block.figures and not block.is_code:
        numbers = ", ".join(number[0] for number in block.figures)
        raise NotSo(f"{numbers}: name the record, or say that they are given")
    return block.text


def _of_records(block: Block) -> Any:
    """The lines, figures or picture that a block's function gives."""
    records = [record.read(name) for name in block.records]
    function = _function(block.source)
    try:
        found = function(*records)
        return list(found) if isinstance(found, Iterator) else found
    except (LookupError, TypeError, ValueError) as error:  # they are of another benchmark or part
        raise NotSo(f"{block.source} does not fit the records named: {error!r}") from error


def _function(source: str) -> Callable[..., Any]:
    module, _, name = source.partition(".")
    place = f"benchmarks.figures.{module}"
    found = getattr(import_module(place), name, None) if module and find_spec(place) else None
    if found is None:
        raise NotSo(f"benchmarks/figures has no {source}")
    function: Callable[..., Any] = found
    return function


def _beginning(block: Block) -> str:
    return repr(" ".join(block.text.split())[:50])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--newest", nargs="+", default=[], help="benchmarks, by records' names")
    given, wrong = options.parse_args(), 0
    for name in (*PAGES, *OTHERS):
        file = TOP / name
        was = file.read_text()
        page, problems = written(renamed(was, given.newest), strict=name in PAGES)
        file.write_text(page)
        for path, picture in drawn(page).items():
            with replacing(file.parent / path) as fresh:
                fresh.write_text(picture)
        wrong += len(problems)
        for problem in problems:
            print(f"{name}: {problem}")
        if page != was:
            print(f"{name}: written anew; `git diff --word-diff {name}` shows what changed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
