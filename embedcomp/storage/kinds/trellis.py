"""Rows in tiers as trellis-coded columns: a number is named by a code and the bits before it.

A code of k bits chooses among 2^k numbers, and which 2^k those are depends on the codes before it,
of other columns and of the rows before. So far more than 2^k numbers are in reach, and the Viterbi
algorithm finds the codes that come closest. What is read stays local: the 8 bits that end with a
code name its number, so any row is read by itself, with 8 bits before it.

Source: trellis-coded quantization (Marcellin and Fischer 1990) in the bit-shift form of QTIP (arXiv
2406.11235). Of normal values it leaves 0.282, 0.077, 0.021 and 0.0058 of the variance in 1 to 4
bits, where single steps leave 0.364, 0.119, 0.038 and 0.0119, and nothing less than 0.25, 0.063,
0.016 and 0.0039 (benchmarks/results/trellis).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.kernels import native, trellis_windows
from embedcomp.storage.columns import MOST_BITS, shared_out
from embedcomp.storage.kind import Kind, State
from embedcomp.storage.tiers import Tiers
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

NAME, TAKEN = "trellis", "trellis_with_windows"
REACH = 6.0  # deviations from the mean up to which errors are known
BINS = 24  # of values up to there
PROBES = 1 << 12  # values by which errors are found,
APART = 64  # so far apart that neighbours are theirs alone


def named(name: str, **parameters: Any) -> Kind | None:
    return (
        {NAME: Trellis, TAKEN: WithWindows}[name](**parameters) if name in (NAME, TAKEN) else None
    )


def examples(rows: int, width: int) -> list[Kind]:
    return []  # the engine reads them as it reads those of tiered.py


@dataclass(frozen=True)
class Trellis(Tiers):
    """Rows one after another without a gap within a tier, of whole bits.

    A column is coded by the trellis where that should leave less of it than even steps do; the grid
    holds the mean and the deviation of such a one as its offset and scale, and its bits with a
    minus. A byte lies before the first row and one after the last, where windows begin and end.

    row_bits: of a row of each tier."""

    unit: ClassVar[Literal["row_bits"]] = "row_bits"
    grows_by: ClassVar[int] = 1
    together: ClassVar[bool] = True

    row_bits: tuple[int, ...]

    @property
    def name(self) -> str:
        return NAME

    @property
    def bits_of_rows(self) -> tuple[int, ...]:
        return self.row_bits

    @property
    def padding_bytes(self) -> int:
        return 2

    def empty(self, rows: int, width: int) -> State:
        """Raises BadSettings where rows take more than a byte a column."""
        if max(self.row_bits) > MOST_BITS * width:
            raise BadSettings(
                f"rows of {width} columns take {MOST_BITS * width} bits at most, and not "
                f"{max(self.row_bits)}"
            )
        return super().empty(rows, width)

    def errors(self, rows: Columns) -> Tensor:
        _, _, *coded = rows.known("coded errors", _coded_errors)
        return torch.stack(coded).minimum(rows.errors())

    def fitted(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        mean, deviation, *coded = rows.known("coded errors", _coded_errors)
        bits = shared_out(row_bits, matters * self.errors(rows), least=0)
        pays = torch.stack(coded) < rows.errors()  # as far as can be foreseen
        gains = pays.gather(0, bits.long()[None])[0]
        normal = torch.stack([deviation, mean, -bits]).bfloat16()
        return torch.where(gains, normal, rows.fitted(bits))

    def encode(self, values: Tensor, grid: Tensor, matters: Tensor | None) -> Tensor:
        out, at = torch.zeros(sum(self.tier_bytes) + 2, dtype=torch.uint8), 1
        tiers = zip(values.split(self.lengths), grid, self.tier_bytes, strict=True)
        for rows, own, size in tiers:
            shared = own.float().cpu().numpy()
            bits, place = np.abs(shared[2]).astype(np.int32), out[at - 1 : at + size].numpy()
            costs = _costs(shared, matters)
            encode(rows.cpu().numpy(), bits, costs, trellis_windows.words(shared), place)
            at += size
        return out.to(values.device)

    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        stored, grid = state["stored"], state["grid"]
        ids = torch.arange(self.ends[-1], device=stored.device) if ids is None else ids
        tier = self.tier_of(ids)
        first, start, size = self._places(stored.device)[tier].unbind(1)  # each [n]
        place, words = _windows(grid)  # [tiers, width], and [tiers, width, 256]
        at = (start + (ids - first) * size)[:, None] + place[tier]
        low, high = (stored[byte].int() for byte in (at // 8, at // 8 + 1))
        window = ((low | high << 8) >> at % 8) & 255
        column = torch.arange(width, device=ids.device)
        return words[tier[:, None], column, window]

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import sloped

        return sloped(self.read(state, values.shape[1], ids), values)  # as encoded last

    def _places(self, device: Any) -> Tensor:
        """By tier [tiers, 3]: its first row, the bit 8 before that row, and the bits of a row."""
        firsts, starts = (0, *self.ends[:-1]), [0, *accumulate(self.tier_bytes)]
        found = zip(firsts, (8 * start for start in starts[:-1]), self.bits_of_rows, strict=True)
        return torch.tensor(list(found), device=device)

    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        taken = WithWindows(self.taken_ends(ids), self.row_bits)
        stored, tier, parts = state["stored"].cpu().numpy(), self.tier_of(ids), []
        places = self._places(ids.device).tolist()
        for number, ((first, start, size), bits) in enumerate(
            zip(places, taken.bits_of_rows, strict=True)
        ):
            begins = (start + (ids[tier == number] - first) * size).numpy()
            at = begins[:, None] + np.arange(bits)  # [n, bits]
            parts.append(np.packbits((stored[at // 8] >> at % 8 & 1).ravel(), bitorder="little"))
        beyond = np.zeros(self.padding_bytes, np.uint8)
        return taken, {**state, "stored": torch.from_numpy(np.concatenate([*parts, beyond]))}

    def place(self, tier: native.Stored, place: int, grid: np.ndarray) -> tuple[Any, ...]:
        """Windows lie elsewhere for each bit that a row begins with.

        Rows are read from the byte before them on, and a byte beyond: a table has both.
        """
        count, width, row_bits = 1 << trellis_windows.BITS, tier.width, self.bits_of_rows[place]
        grid = grid[place]
        at = np.arange(8, dtype=np.int32)[:, None] + trellis_windows.places(grid)  # [8, width]
        starts = np.tile(count * np.arange(width, dtype=np.int32), (8, 1))
        masks = np.full_like(starts, count - 1)
        held = trellis_windows.words(grid), starts, at // 8, at % 8, masks
        tier.words, tier.at, tier.byte, tier.bit, tier.mask = map(native.address, held)
        tier.parts, tier.narrow = width, 1
        tier.row_bits, tier.row_bytes = row_bits, (row_bits + 7) // 8 + 2 if row_bits else 0
        return held


@dataclass(frozen=True)
class WithWindows(Trellis):
    """Rows that were taken from others: each that has bits begins with the 8 bits before it.

    So it is a byte longer, and reads as it did where other rows lay before it.
    """

    @property
    def name(self) -> str:
        return TAKEN

    @property
    def bits_of_rows(self) -> tuple[int, ...]:
        return tuple(bits + trellis_windows.BITS if bits else 0 for bits in self.row_bits)

    def encode(self, values: Tensor, grid: Tensor, matters: Tensor | None) -> Tensor:
        raise NotImplementedError("their bits were chosen together with those of other rows")


def _windows(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Where windows begin, and what they stand for (trellis_windows.py)."""
    scale, offset, signed = grid[..., None].float().unbind(1)  # each [tiers, width, 1]
    bits, every = signed.abs().long(), torch.arange(1 << trellis_windows.BITS, device=grid.device)
    numbers = torch.from_numpy(trellis_windows.numbers()).to(grid.device)
    named = numbers[bits[..., 0].where(signed[..., 0] < 0, 0)]
    words = torch.where(signed < 0, named, (every >> (trellis_windows.BITS - bits)).float())
    return bits.cumsum(1).where(bits > 0, 0)[..., 0], words * scale + offset


def _costs(grid: np.ndarray, matters: Tensor | None) -> np.ndarray:
    """How much a squared error in a column matters, float32 [width], 1 on average.

    Where it was not told, as water-filling would have it: rounding errors of all columns count the
    same.
    """
    if matters is None:
        left = np.square(grid[0]) * np.where(grid[2] < 0, 4.0 ** grid[2], 1 / 12)
        found = np.divide(1, left, out=np.zeros_like(left), where=left > 0)
    else:
        found = matters.float().cpu().numpy()
    mean = found[grid[2] != 0].mean() if grid[2].any() else 0.0
    return (found / mean if mean > 0 else np.ones_like(found)).astype(np.float32)


def encode(
    values: np.ndarray, bits: np.ndarray, matters: np.ndarray, words: np.ndarray, out: np.ndarray
) -> None:
    """Find codes of values and add them to `out`, one after another, lowest bit first.

    Args:
        values: float32 [n, width].
        bits: int32 [width], of each column's codes.
        matters: float32 [width], how much a squared error in a column does.
        words: float32 [width, 256], what windows stand for.
        out: uint8 [1 + bytes], 0 but for the first byte, which is what came before.
    """
    if native.library() is None:
        _encode_slowly(values, bits, matters, words, out)
        return
    arrays = [np.ascontiguousarray(array) for array in (values, bits, matters, words)]
    at, *read, first = (native.address(array) for array in (*arrays, out))
    native.needed().embedcomp_trellis(at, *values.shape, *read, first + 1)


def _encode_slowly(
    values: np.ndarray, bits: np.ndarray, matters: np.ndarray, words: np.ndarray, out: np.ndarray
) -> None:
    """Encode where the engine was not built: the Viterbi algorithm over all values at once."""
    columns = np.flatnonzero(bits)
    steps = [(values[row, c], c) for row in range(len(values)) for c in columns]
    cost = np.full(256, np.inf, np.float32)
    cost[out[0]] = 0
    best = []  # by step: the lowest bits of the best window that a step drops
    for value, c in steps:
        ways = cost.reshape(-1, 1 << bits[c])
        best.append(ways.argmin(1))
        left = np.tile(ways.min(1), 1 << bits[c])
        cost = left - left.min() + matters[c] * np.square(words[c] - value)
    window, codes = int(cost.argmin()), []
    for (_, c), dropped in zip(reversed(steps), reversed(best), strict=True):
        k = int(bits[c])
        codes.append([window >> (trellis_windows.BITS - k + bit) & 1 for bit in range(k)])
        kept = window & ((1 << (trellis_windows.BITS - k)) - 1)
        window = kept << k | int(dropped[kept])
    if codes:
        packed = np.packbits(np.concatenate(codes[::-1]).astype(np.uint8), bitorder="little")
        out[1 : 1 + len(packed)] = packed


def _coded_errors(columns: Columns) -> Tensor:
    """Mean, deviation and weighted squared errors with 0, 1, 2, ... bits [MOST_BITS + 3, width]."""
    rows, weights = columns.values, columns.weights
    w = torch.ones(len(rows)) if weights is None or not weights.any() else weights.float()
    mean = (rows * w[:, None]).sum(0) / w.sum()
    variance = ((rows - mean).square() * w[:, None]).sum(0) / w.sum()
    deviation = variance.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    far = (rows - mean) / deviation
    places = ((far + REACH) * (BINS / (2 * REACH))).long().clamp(0, BINS - 1)
    held = torch.zeros(rows.shape[1], BINS).scatter_add_(1, places.T, w.expand(places.T.shape))
    errors = errors_by_value()
    off = (far.abs() - REACH).clamp_min(0)  # adds to the distance that the last error is of
    beyond = [(w[:, None] * off**power).sum(0) for power in (1, 2)]
    outside = 2 * errors[:, -1:].sqrt() * beyond[0] + beyond[1]
    return torch.cat([mean[None], deviation[None], variance * (errors @ held.T + outside)])


@cache
def errors_by_value() -> Tensor:
    """Squared error [MOST_BITS + 1, BINS] that a value brings among normal ones, by bits and value.

    Measured, with what it does to its neighbours: far from the mean there are few numbers, and they
    force worse codes on others. Beyond `trellis_windows.CODED` bits, codes are as good as none.
    """
    random = np.random.default_rng(0)
    normal = random.standard_normal((PROBES, APART), np.float32)
    values, middle = normal.copy(), APART // 2
    values[:, middle] = random.permutation(np.linspace(-REACH, REACH, PROBES, dtype=np.float32))
    probes = values[:, middle]
    places = ((probes + REACH) * (BINS / (2 * REACH))).astype(np.int64).clip(0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    found = np.tile(np.bincount(places, probes**2, BINS) / counts, (MOST_BITS + 1, 1))
    for bits in range(1, trellis_windows.CODED + 1):
        without, brought = _squared_errors(normal, bits), _squared_errors(values, bits)
        without[:, middle] = 0
        found[bits] = np.bincount(places, (brought - without).sum(1), BINS) / counts
    return torch.from_numpy(found).float()


def _squared_errors(values: np.ndarray, bits: int) -> np.ndarray:
    """Squared errors of values [n, width] in normal columns of `bits` bits."""
    n, width = values.shape
    probe = Trellis((n,), (width * bits,))
    grid = torch.tensor([1.0, 0.0, -bits]).bfloat16()[None, :, None].expand(1, 3, width)
    state = probe.refill(torch.from_numpy(values), {"grid": grid}, None)
    errors: np.ndarray = np.square(probe.read(state, width).numpy() - values)
    return errors
