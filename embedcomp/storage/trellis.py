"""Stored rows whose codes are trellis-coded: a number is named by a code and the bits before it.

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

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.kernels import native, windows
from embedcomp.storage.columns import MOST_BITS, Columns, shared_out
from embedcomp.storage.rows import straight_through
from embedcomp.storage.tiers import Tiers

REACH = 6.0  # deviations from the mean up to which errors are known
BINS = 24  # of values up to there
PROBES = 1 << 12  # values by which errors are found,
APART = 64  # so far apart that neighbours are theirs alone


class TrellisRows(Tiers):
    """Rows in tiers as trellis-coded columns, one after another without a gap within a tier.

    A column is coded by the trellis where that should leave less of it than even steps do; the grid
    holds the mean and the deviation of such a one as its offset and scale, and its bits with a
    minus. A byte lies before the first row and one after the last, where windows begin and end.

    Thawed, rows train as they are stored; because a code depends on its neighbours, all are encoded
    anew, after as many look-ups as there are rows while the module trains, and whenever it is read
    in evaluation. So `freeze` changes nothing that is read in evaluation.

    Args:
        ends: row after the last one of each tier.
        row_bits: of a row of each tier.

    Raises:
        BadSettings: they are more than a byte a column.
    """

    unit = "row_bits"
    looked_up: Tensor | None  # rows, since all were encoded; while thawed

    def __init__(self, rows: int, width: int, ends: Sequence[int], row_bits: Sequence[int]):
        super().__init__(rows, width, ends, row_bits)
        if max(row_bits) > MOST_BITS * width:
            raise BadSettings(
                f"rows of {width} columns take {MOST_BITS * width} bits at most, and not "
                f"{max(row_bits)}"
            )
        self.storage = "trellis"
        self.stored = torch.empty(sum(self.tier_bytes) + 2, dtype=torch.uint8)
        self.register_buffer("looked_up", None)
        self._matters: Tensor | None = None  # errors of columns, where they were filled in
        self._encoded_at = -1  # the version of `master` that is stored

    def fill(
        self,
        weight: Tensor | Columns,
        row_weights: Tensor | None = None,
        column_weights: Tensor | None = None,
    ) -> None:
        even = torch.ones(self.width, device=self.device)
        self._matters = even if column_weights is None else column_weights.float()
        super().fill(weight, row_weights, column_weights)

    def _fitted_tier(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        mean, deviation, *found = rows.known("coded errors", _coded_errors)
        coded, stepped = torch.stack(found), rows.errors()
        pays = coded < stepped  # as far as can be foreseen
        bits = shared_out(row_bits, matters * torch.where(pays, coded, stepped), least=0)
        gains = pays.gather(0, bits.long()[None])[0]
        normal = torch.stack([deviation, mean, -bits]).bfloat16()
        return torch.where(gains, normal, rows.fitted(bits))

    def _encoded(self, weight: Tensor) -> Tensor:
        assert self.grid is not None
        out, at = torch.zeros(sum(self.tier_bytes) + 2, dtype=torch.uint8), 1
        tiers = zip(weight.split(self.lengths), self.grid, self.tier_bytes, strict=True)
        for rows, grid, size in tiers:
            shared = grid.float().cpu().numpy()
            bits, place = np.abs(shared[2]).astype(np.int32), out[at - 1 : at + size].numpy()
            encode(rows.cpu().numpy(), bits, self._costs(shared), windows.words(shared), place)
            at += size
        return out.to(weight.device)

    def _costs(self, grid: np.ndarray) -> np.ndarray:
        """How much a squared error in a column matters, float32 [width], 1 on average.

        Where it was not told, as water-filling would have it: rounding errors of all columns count
        the same.
        """
        if self._matters is None:
            left = np.square(grid[0]) * np.where(grid[2] < 0, 4.0 ** grid[2], 1 / 12)
            found = np.divide(1, left, out=np.zeros_like(left), where=left > 0)
        else:
            found = self._matters.cpu().numpy()
        mean = found[grid[2] != 0].mean() if grid[2].any() else 0.0
        return (found / mean if mean > 0 else np.ones_like(found)).astype(np.float32)

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [n, width] of ids [n]; thawed, with a sparse gradient."""
        if self.master is None:
            return self._read(ids)
        self._encode_anew(len(ids))
        values = F.embedding(ids, self.master, sparse=True)
        return straight_through(lambda _: self._read(ids), values)

    def to_float(self) -> Tensor:
        """The whole matrix, float32 [rows, width]; thawed, with a dense gradient."""
        every = torch.arange(self.rows, device=self.device)
        if self.master is None:
            return self._read(every)
        self._encode_anew(self.rows)
        return straight_through(lambda _: self._read(every), self.master)

    def _read(self, ids: Tensor) -> Tensor:
        assert self.stored is not None
        tier = self._tier(ids)
        first, start, size = self._places()[tier].unbind(1)  # each [n]
        place, words = self._windows  # [tiers, width], and [tiers, width, 256]
        at = (start + (ids - first) * size)[:, None] + place[tier]
        low, high = (self.stored[byte].int() for byte in (at // 8, at // 8 + 1))
        window = ((low | high << 8) >> at % 8) & 255
        column = torch.arange(self.width, device=ids.device)
        return words[tier[:, None], column, window]

    def _places(self) -> Tensor:
        """By tier [tiers, 3]: its first row, the bit 8 before that row, and the bits of a row."""
        firsts, starts = (0, *self.ends[:-1]), [0, *accumulate(self.tier_bytes)]
        found = zip(firsts, (8 * start for start in starts[:-1]), self.row_bits, strict=True)
        return torch.tensor(list(found), device=self.device)

    @property
    def _windows(self) -> tuple[Tensor, Tensor]:
        """Where windows begin, and what they stand for (windows.py)."""
        assert self.grid is not None
        scale, offset, signed = self.grid[..., None].float().unbind(1)  # each [tiers, width, 1]
        bits, every = signed.abs().long(), torch.arange(1 << windows.BITS, device=self.device)
        numbers = torch.from_numpy(windows.numbers()).to(self.device)
        named = numbers[bits[..., 0].where(signed[..., 0] < 0, 0)]
        words = torch.where(signed < 0, named, (every >> (windows.BITS - bits)).float())
        return bits.cumsum(1).where(bits > 0, 0)[..., 0], words * scale + offset

    def _encode_anew(self, looked_up: int) -> None:
        """Store what was trained, if it is due."""
        assert self.master is not None and self.looked_up is not None
        self.looked_up += looked_up
        due = self.looked_up >= self.rows if self.training else self._encoded_at != self._trained
        if due:
            self._encode_master()

    def _encode_master(self) -> None:
        assert self.master is not None and self.looked_up is not None
        self.stored = self._encoded(self.master.detach().contiguous())
        self.looked_up.zero_()
        self._encoded_at = self._trained

    @property
    def _trained(self) -> int:
        """A number that changes with what is trained."""
        assert self.master is not None
        return self.master._version

    def thaw(self) -> None:
        """Make it trainable, from what was not rounded yet if that is known."""
        if self.master is None:
            stored = self.stored
            super().thaw()
            self.stored, self.looked_up = stored, torch.zeros((), dtype=torch.int64)
            self._encoded_at = self._trained

    def freeze(self) -> None:
        """Store what was trained; what is read in evaluation does not change by a bit."""
        if self.master is not None:
            self._encode_master()
            self.master = self.looked_up = None


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
    at, *read, first = (int(a.__array_interface__["data"][0]) for a in (*arrays, out))
    native.needed().embedcomp_trellis(at, *values.shape, *read, first + 1)


def _encode_slowly(
    values: np.ndarray, bits: np.ndarray, matters: np.ndarray, words: np.ndarray, out: np.ndarray
) -> None:
    """The same where the engine was not built: the Viterbi algorithm over all values at once."""
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
        codes.append([window >> (windows.BITS - k + bit) & 1 for bit in range(k)])
        kept = window & ((1 << (windows.BITS - k)) - 1)
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
    force worse codes on others. With more bits than windows.CODED codes are as good as none.
    """
    random = np.random.default_rng(0)
    normal = random.standard_normal((PROBES, APART), np.float32)
    values, middle = normal.copy(), APART // 2
    values[:, middle] = random.permutation(np.linspace(-REACH, REACH, PROBES, dtype=np.float32))
    probes = values[:, middle]
    places = ((probes + REACH) * (BINS / (2 * REACH))).astype(np.int64).clip(0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    found = np.tile(np.bincount(places, probes**2, BINS) / counts, (MOST_BITS + 1, 1))
    for bits in range(1, windows.CODED + 1):
        without, brought = _squared_errors(normal, bits), _squared_errors(values, bits)
        without[:, middle] = 0
        found[bits] = np.bincount(places, (brought - without).sum(1), BINS) / counts
    return torch.from_numpy(found).float()


def _squared_errors(values: np.ndarray, bits: int) -> np.ndarray:
    """Of values [n, width] in normal columns of so many bits."""
    n, width = values.shape
    probe = TrellisRows(n, width, (n,), (width * bits,))
    probe.grid = torch.tensor([1.0, 0.0, -bits]).bfloat16()[None, :, None].expand(1, 3, width)
    probe.stored = probe._encoded(torch.from_numpy(values))
    errors: np.ndarray = np.square(probe.to_float().numpy() - values)
    return errors
