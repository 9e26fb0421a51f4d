"""A document's blocks, and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

_MARK = re.compile(r"\A<!-- (.*?) -->\n?", re.DOTALL)
# What may hold digits that are no figures: code, links' targets, papers' numbers, headings, items.
_ASIDE = re.compile(r"`[^`]*`|\]\([^)]*\)|arXiv [\d.]+\d|^#+ .*|^\d+\. |<!--[^>]*-->", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)]*)\)")
_NUMBER = re.compile(
    r"(?<![\w.@-])[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?:%|x\b)?"
)


@dataclass(frozen=True)
class Block:
    """Lines between blank lines, and the comment above them.

    kind: "table", "figures" or "picture"; empty where no record is named.
    source: the function that gives them, as "quality.models".
    """

    mark: str  # the comment and the end of its line; empty if there is none
    text: str
    kind: str = ""
    source: str = ""
    records: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()

    @property
    def is_code(self) -> bool:
        return self.text.startswith(("    ", "```"))

    @property
    def linked(self) -> str:
        """The file of the first link; empty if there is none."""
        found = _LINK.search(self.text)
        return found[1] if found else ""

    @property
    def numbers(self) -> list[re.Match[str]]:
        """All that are neither in a heading nor in code nor in a link."""
        return list(_NUMBER.finditer(_ASIDE.sub(lambda aside: " " * len(aside[0]), self.text)))

    @property
    def figures(self) -> list[re.Match[str]]:
        """Numbers that are not given, in their order."""
        return [number for number in self.numbers if number[0] not in self.given]

    def with_figures(self, values: list[float]) -> str:
        """The text with other figures, each written as the one before: rounded, with its sign."""
        found, text, end = [], self.text, 0
        for number, value in zip(self.figures, values, strict=True):
            found += [text[end : number.start()], like(number[0], value)]
            end = number.end()
        return "".join([*found, text[end:]])


def like(written: str, value: float) -> str:
    """A number written as another one is: its digits after the point, its sign, "%" or "x"."""
    number = written.rstrip("%x")
    digits = len(number.partition(".")[2])
    sign = "+" if written[0] in "+-" else ""
    return f"{value:{sign},.{digits}f}{written[len(number) :]}"


def blocks(page: str) -> Iterator[tuple[Block, str]]:
    """Each block, and the blank lines behind it; together they are the page."""
    parts = re.split(r"(\n{2,}|\n\Z)", page)
    in_code = ""
    for text, gap in zip_longest(parts[::2], parts[1::2], fillvalue=""):
        in_code += text
        if in_code.count("```") % 2:
            in_code += gap
            continue
        yield _block(in_code), gap
        in_code = ""


def _block(text: str) -> Block:
    mark = _MARK.match(text)
    if not mark:
        return Block("", text)
    told: dict[str, list[str]] = {}
    for part in mark[1].split(";"):
        name, _, words = part.strip().partition(":")
        told[name] = words.split()
    kinds = told.keys() & {"table", "figures", "picture"}
    if not kinds and "given" not in told:
        return Block("", text)
    kind = kinds.pop() if kinds else ""
    source, *records = told[kind] if kind else [""]
    given = frozenset(told.get("given", ()))
    return Block(mark[0].rstrip() + "\n", text[mark.end() :], kind, source, tuple(records), given)
