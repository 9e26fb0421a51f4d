"""Rows of which few chunks of neighbouring columns are kept; the others are zeros."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.columns import NO_SPREAD
from embedcomp.storage.kind import (
    FP16_MAX,
    Kind,
    Located,
    Reads,
    State,
    as_floats,
    refuse_beyond,
    vectors,
)
from embedcomp.storage.kinds.csr import largest
from embedcomp.storage.packing import ones
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

CHUNK = 4  # columns, at most
BLOCK = 256  # chunks whose live ones are counted up to, as in kernels.inc
INTS = 1 + BLOCK // 32  # of a block: the count, and a bit a chunk
LEVELS = 127  # steps of a byte on either side of zero


def named(name: str, **parameters: Any) -> Kind | None:
    return next((kind(**parameters) for kind in (Halves, Bytes) if name == kind.NAME), None)


def examples(rows: int, width: int) -> list[Kind]:
    return [kind(rows, rows * chunks_of(width) // 2) for kind in (Halves, Bytes)]


def chunks_of(width: int) -> int:
    """Chunks of a row: as few as there can be."""
    return -(-width // CHUNK)


def columns_of(width: int) -> int:
    """Columns of a chunk, as even as they can be; the last one of a row may have fewer."""
    return -(-width // max(chunks_of(width), 1))


def cut(values: Tensor) -> Tensor:
    """Rows [n, width] as chunks [n, chunks, columns]; columns beyond a row are zeros."""
    width = values.shape[1]
    chunks, columns = chunks_of(width), columns_of(width)
    padded = torch.nn.functional.pad(values, (0, chunks * columns - width))
    return padded.view(len(values), chunks, columns)


def spread(of_chunks: Tensor, width: int) -> Tensor:
    """What is said of chunks [n, chunks], said of each of their numbers [n, width]."""
    return of_chunks.repeat_interleave(columns_of(width), 1)[:, :width]


def costs(values: Tensor, weights: Tensor | None, matters: Tensor | None) -> Tensor:
    """What it costs to drop each chunk of rows [n, width], float32 [n, chunks].

    Args:
        weights: of a squared error in each row [n]; None: all the same.
        matters: of one in each column [width]; None: all the same.
    """
    squares = values.square()
    of_chunks = cut(squares if matters is None else squares * matters.float()).sum(2)
    return of_chunks if weights is None else of_chunks * weights.float()[:, None]


def most(sizes: Tensor, number: int) -> Tensor:
    """Which chunks have the `number` largest of sizes [n, chunks], the first ones among equals."""
    return largest(sizes.reshape(-1), number).view(sizes.shape)


@dataclass(frozen=True)
class Chunked(Kind):
    """Sparse rows: a given number of chunks, those that cost the most to drop, and zeros.

    blocks: int32 [blocks of 256 chunks, 1 + 8], of each block how many live chunks come before it,
        then a bit a chunk, the first one lowest: 0.14 bytes a chunk. So chunks are found by
        counting bits (rank: Jacobson, FOCS 1989).
    stored: [live, columns of a chunk], row after row.
    """

    NAME: ClassVar[str]

    rows: int
    live: int  # chunks

    @property
    def name(self) -> str:
        return self.NAME

    @property
    def parameters(self) -> dict[str, Any]:
        return {"rows": self.rows, "live": self.live}

    @abstractmethod
    def empty_numbers(self, live: int, columns: int) -> Tensor:
        """Stored chunks."""

    def empty_grid(self, width: int) -> State:
        """What stored numbers are multiplied by, if they are."""
        return {}

    def fit(self, values: Tensor, alive: Tensor) -> State:
        """The grid for the live numbers of rows [n, width]."""
        return {}

    @abstractmethod
    def encode(self, values: Tensor, state: State) -> Tensor:
        """Numbers [n, width] as they are stored."""

    @abstractmethod
    def decode(self, numbers: Tensor, state: State) -> Tensor:
        """Stored numbers as float32 [n, width]."""

    def empty(self, rows: int, width: int) -> State:
        assert rows == self.rows, (rows, self.rows)
        chunks = rows * chunks_of(width)
        return {
            "stored": self.empty_numbers(self.live, columns_of(width)),
            "blocks": torch.zeros(-(-chunks // BLOCK), INTS, dtype=torch.int32),
            **self.empty_grid(width),
        }

    def fill(self, columns: Columns, matters: Tensor | None) -> State:
        alive = most(costs(columns.values, columns.weights, matters), self.live)
        return self.filled(columns.values, alive)

    def filled(self, values: Tensor, alive: Tensor) -> State:
        """Tensors that hold the chunks of rows [n, width] that are said to live.

        Raises:
            CannotStore: a value is not finite in this kind.
        """
        return self.refill(values, self.marked(values, alive), None)

    def marked(self, values: Tensor, alive: Tensor) -> dict[str, Tensor]:
        """What there is beside stored numbers.

        Args:
            values: [rows, width], to which the grid is fitted.
            alive: bool [rows, chunks].
        """
        return {"blocks": _blocks(alive), **self.fit(values, alive)}

    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        alive = self.alive(state, values.shape[1])
        return {**state, "stored": cut(self.encode(values, state))[alive]}

    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        alive = self.alive(state, width, ids)
        before = _rank(state["blocks"], ids * chunks_of(width))
        place = before[:, None] + alive.cumsum(1) - alive.long()
        stored = state["stored"].index_select(0, place[alive])
        found = {**state, "stored": stored, "blocks": _blocks(alive)}
        return replace(self, rows=len(ids), live=len(stored)), found

    def alive(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        """Which chunks live, bool [n, chunks]: those of rows ids [n], or all."""
        blocks, chunks = state["blocks"], chunks_of(width)
        if ids is None:
            bits = blocks[:, 1:, None] >> torch.arange(32, device=blocks.device) & 1
            return bits.view(-1)[: self.rows * chunks].view(-1, chunks).bool()
        chunk = ids[:, None] * chunks + torch.arange(chunks, device=ids.device)
        word = chunk // BLOCK * INTS + 1 + chunk % BLOCK // 32
        return (blocks.view(-1)[word] >> (chunk % 32) & 1).bool()

    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        alive = self.alive(state, width, ids)
        found = torch.zeros(*alive.shape, columns_of(width), dtype=state["stored"].dtype)
        found = found.to(alive.device)
        if ids is None:
            found[alive] = state["stored"]
        else:
            before = _rank(state["blocks"], ids * chunks_of(width))
            place = before[:, None] + alive.cumsum(1) - alive.long()
            found[alive] = state["stored"].index_select(0, place[alive])
        return self.decode(found.flatten(1)[:, :width], state)

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import sloped

        with torch.no_grad():
            dead = ~spread(self.alive(state, values.shape[1], ids), values.shape[1])
            read = self.decode(self.encode(values, state).masked_fill_(dead, 0), state)
        return sloped(read, values)  # the gradient reaches dead chunks, so that they can be found

    def located(
        self, held: Mapping[str, np.ndarray], rows: int, width: int, padding: int
    ) -> Located:
        blocks, stored = held["blocks"], held["stored"]
        at = native.Stored(
            rows=native.address(blocks),
            row_bytes=1,  # a row's number is where it would lie; it is not read there
            num_ids=rows,
            kind=native.KINDS[self.name],
            width=width,
            padding=padding,
            last=rows - 1,
            columns=native.address(blocks),
            values=native.address(stored),
            parts=chunks_of(width),
        )
        return Located(at, self.scales(held, width), (blocks, stored))

    def scales(self, held: Mapping[str, np.ndarray], width: int) -> np.ndarray | None:
        """The grid as the engine takes it."""
        return None

    def reads(self, rows: int, width: int) -> Reads:
        each = columns_of(width) * self.empty_numbers(0, 1).element_size()
        return Reads(
            kind=self.name,
            numbers=self.live * columns_of(width) / max(rows, 1),
            vectors=vectors(width),
            row_bytes=4 * INTS,
            stored_bytes=4 * INTS * -(-rows * chunks_of(width) // BLOCK) + self.live * each,
        )


@dataclass(frozen=True)
class Halves(Chunked):
    """Chunks of fp16 numbers."""

    NAME: ClassVar[str] = "chunked_float16"

    def empty_numbers(self, live: int, columns: int) -> Tensor:
        return torch.empty(live, columns, dtype=torch.float16)

    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        found = super().refill(values, state, matters)
        refuse_beyond(FP16_MAX, found["stored"].float(), self.name)
        return found

    def encode(self, values: Tensor, state: State) -> Tensor:
        return values.half()

    def decode(self, numbers: Tensor, state: State) -> Tensor:
        return numbers.float()


@dataclass(frozen=True)
class Bytes(Chunked):
    """Chunks of signed bytes, times a scale a column, which is the grid, bfloat16 [width]."""

    NAME: ClassVar[str] = "chunked_int8"
    scaled: ClassVar[bool] = True

    def empty_numbers(self, live: int, columns: int) -> Tensor:
        return torch.empty(live, columns, dtype=torch.int8)

    def empty_grid(self, width: int) -> State:
        return {"grid": torch.ones(width, dtype=torch.bfloat16)}

    def fit(self, values: Tensor, alive: Tensor) -> State:
        """Scales by which the largest live number of a column is the largest byte."""
        width = values.shape[1]
        live = values.abs().masked_fill(~spread(alive, width), 0)
        reach = live.amax(0) if len(live) else live.new_zeros(width)
        return {"grid": (reach / LEVELS).clamp_min(NO_SPREAD).bfloat16()}

    def encode(self, values: Tensor, state: State) -> Tensor:
        codes = (values / state["grid"].float()).round_()
        return codes.clamp_(-LEVELS, LEVELS).to(torch.int8)

    def decode(self, numbers: Tensor, state: State) -> Tensor:
        return numbers.float() * state["grid"].float()

    def scales(self, held: Mapping[str, np.ndarray], width: int) -> np.ndarray:
        scale = as_floats(held["grid"])
        return np.stack([scale, np.zeros_like(scale)])


def _blocks(alive: Tensor) -> Tensor:
    """Which chunks live, bool [n, chunks], as they are stored."""
    flat = alive.reshape(-1)
    bits = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK // 32, 32)
    words = (bits.long() << torch.arange(32, device=bits.device)).sum(2)
    inside = bits.sum((1, 2))
    return torch.cat([(inside.cumsum(0) - inside)[:, None], words], 1).to(torch.int32)


def _rank(blocks: Tensor, chunk: Tensor) -> Tensor:
    """How many live chunks come before each of some chunks, int64 [n]."""
    read = blocks.index_select(0, chunk // BLOCK)
    bits = read[:, 1:].clone(memory_format=torch.contiguous_format).view(torch.int64)
    word, bit = (chunk % BLOCK // 64)[:, None], (chunk % 64)[:, None]
    words = torch.arange(BLOCK // 64, device=blocks.device)
    before = torch.where(words == word, (1 << bit) - 1, torch.where(words < word, -1, 0))
    return read[:, 0] + ones(bits & before).sum(1)
