"""How numbers are stored: plain floats, integers with a scale a row, integers with one a column.

A format turns float32 rows into stored rows and back, each row by itself, so that rounding some
rows of a table gives what rounding the whole table gives. What all rows share (the columns' scales,
offsets and bits) is its `grid`.
"""

from __future__ import annotations

import ctypes
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NewType, Protocol, get_args

import fbgemm_gpu  # noqa: F401 - registers the operators of row-wise integers
import torch
from torch import Tensor

from embedcomp.errors import EmbedcompError
from embedcomp.scoring import native
from embedcomp.scoring.codes import parsed

ColumnStorage = Literal[
    "column_int8",
    "column_int4",
    "column_mixed6",
    "column_mixed5",
    "column_mixed4",
    "column_mixed3",
    "column_mixed2",
]
FactorStorage = Literal["float32", "float16", ColumnStorage]  # of the factors of a low-rank layer
Storage = Literal[FactorStorage, "bfloat16", "row_int8", "row_int4", "row_int2", "symmetric_int8"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
CodeStorage = NewType("CodeStorage", str)  # codes into codebooks, with sizes in the name (codes.py)
AnyStorage = Storage | CodeStorage
ProductBits = Literal[4, 8]
ClusteredBits = Literal[2, 3, 4, 8]


def product(parts: int, bits: ProductBits) -> CodeStorage:
    return CodeStorage(f"product{parts}x{bits}")


def clustered(bits: ClusteredBits) -> CodeStorage:
    return CodeStorage(f"clustered{bits}")


def sparse(row_atoms: int, atoms: int) -> CodeStorage:
    return CodeStorage(f"sparse{row_atoms}x{atoms}")


FP16_MAX = 65504.0
BINS = 4096  # of a column's weighted histogram, to which its grid is fitted
MOST_BITS = 8  # of one column, where columns differ
FITTED_BITS = 4  # a bit more than these quarters the squared error
SHRINKS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1, 0.06)  # of a column's range, tried
REFINEMENTS = 4
NO_SPREAD = torch.finfo(torch.float32).tiny  # scale of a column of one value


class CannotStore(EmbedcompError):
    """Values that a storage would turn into something that is not a number."""

    def __init__(self, largest: float, storage: str):
        super().__init__(
            f"values up to {largest:.3g} do not fit {storage}, whose 16-bit floats end at "
            f"{FP16_MAX:,.0f}; use float32 or a column_* storage"
        )


class Format(Protocol):
    """Float32 rows [n, width] to stored rows [n, ...] and back."""

    def empty(self, rows: int, width: int) -> Tensor: ...

    def empty_grid(self, width: int) -> Tensor | None: ...

    def fit(
        self, weight: Tensor, row_weights: Tensor | None, column_weights: Tensor | None
    ) -> Tensor | None:
        """The grid for these rows, or None for a format without one. Raises CannotStore.

        Args:
            row_weights, column_weights: [n] and [width], how much a squared error in a row and in a
                column matters; None: all the same.
        """
        ...

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor: ...

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor: ...


def format_of(storage: AnyStorage) -> Format:
    """The format with this name.

    Raises:
        BadSettings: it is one of codes, of a size that there is not.
    """
    codes = parsed(storage)
    if codes is not None:
        from embedcomp.served.codebooks import codebook_format  # which reads this file

        return codebook_format(codes)
    if storage.startswith("column_mixed"):
        return MixedColumns(int(storage.removeprefix("column_mixed")))
    kind, _, bits = storage.rpartition("_int")
    if kind == "row":
        return RowWise(int(bits))
    if kind == "column":
        return ColumnWise(int(bits))
    if kind == "symmetric":
        return Symmetric()
    return Plain(getattr(torch, storage))


@dataclass(frozen=True)
class Plain:
    """Floats as they are."""

    dtype: torch.dtype

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=self.dtype)

    def empty_grid(self, width: int) -> None:
        return None

    def fit(
        self, weight: Tensor, row_weights: Tensor | None, column_weights: Tensor | None
    ) -> None:
        if self.dtype == torch.float16:
            refuse_beyond(FP16_MAX, weight, "float16")

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        return weight.to(self.dtype)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        return stored.float()


@dataclass(frozen=True)
class RowWise:
    """fbgemm's rows: fp16 scale and bias, then codes: d + 4 bytes in 8 bits, d/2 + 4, d/4 + 4.

    fbgemm takes widths of whole 16-bit words only; a narrower row repeats its last column, which
    leaves its range as it is.
    """

    bits: int

    def _padded(self, width: int) -> int:
        step = 16 // self.bits
        return -(-width // step) * step

    def empty(self, rows: int, width: int) -> Tensor:
        assert width > 0, "a row without columns has no scale"
        return torch.empty(rows, self._padded(width) * self.bits // 8 + 4, dtype=torch.uint8)

    def empty_grid(self, width: int) -> None:
        return None

    def fit(
        self, weight: Tensor, row_weights: Tensor | None, column_weights: Tensor | None
    ) -> None:
        # the smallest of a row is stored in fp16
        refuse_beyond(FP16_MAX, weight, f"row_int{self.bits}")

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        missing = self._padded(weight.shape[1]) - weight.shape[1]
        if not len(weight):
            return self.empty(0, weight.shape[1])
        padded = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1)
        return torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(padded, self.bits)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        if not len(stored):
            return torch.empty(0, width)
        rows = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloatOrHalf(stored, self.bits, 0)
        return rows[:, :width].contiguous()


@dataclass(frozen=True)
class Symmetric:
    """Signed bytes, then an fp16 scale: width + 2 bytes a row, and 0 stays 0.

    It is how an integer product wants the weights of one output.
    """

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width + 2, dtype=torch.uint8)

    def empty_grid(self, width: int) -> None:
        return None

    def fit(
        self, weight: Tensor, row_weights: Tensor | None, column_weights: Tensor | None
    ) -> None:
        refuse_beyond(127 * FP16_MAX, weight, "symmetric_int8")

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        largest = weight.abs().amax(1, keepdim=True) if weight.shape[1] else weight.new_zeros(1, 1)
        scale = (largest / 127).half()
        scale = torch.where(scale > 0, scale, 1.0).expand(len(weight), 1)
        codes = (weight / scale.float()).round_().clamp_(-127, 127).to(torch.int8)
        return torch.cat([codes.view(torch.uint8), scale.contiguous().view(torch.uint8)], 1)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        scale = stored[:, width:].clone(memory_format=torch.contiguous_format)  # aligned
        return stored[:, :width].view(torch.int8).float() * scale.view(torch.float16).float()


@dataclass(frozen=True)
class ColumnWise:
    """Unsigned codes with a scale and an offset a column; nothing is kept per row.

    A row takes `width` bytes (8 bits) or half of that, rounded up (4 bits). The grid is bfloat16
    [2, width]: scales, then offsets.
    """

    bits: int

    @property
    def levels(self) -> int:
        """Steps between the lowest and the highest code."""
        return (1 << self.bits) - 1

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, -(-width * self.bits // 8), dtype=torch.uint8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(2, width, dtype=torch.bfloat16)

    def fit(
        self, weight: Tensor, row_weights: Tensor | None, column_weights: Tensor | None
    ) -> Tensor:
        return shortened(fit_grid(*_histogram(weight, row_weights, BINS), self.levels), self.levels)

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        codes = _codes(weight, grid.float(), self.levels).to(torch.uint8)
        if self.bits == 8:
            return codes
        if codes.shape[1] % 2:
            codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], 1)
        return codes[:, ::2] | (codes[:, 1::2] << 4)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        if self.bits == 4:
            stored = torch.stack([stored & 15, stored >> 4], -1).flatten(1)[:, :width]
        scale, offset = grid.float()
        return stored.float() * scale + offset


@dataclass(frozen=True)
class MixedColumns:
    """Unsigned codes of as many bits as each column deserves; nothing is kept per row.

    A row takes width * bits / 8 bytes, rounded up. Each of its bits goes to the column whose
    weighted squared error it lowers most, which is reverse water-filling on measured errors. The
    grid is bfloat16 [3, width]: scales, offsets, bits. Codes lie one after another, lowest bit
    first.
    """

    bits: int  # a column, on average

    def _row_bytes(self, width: int) -> int:
        return -(-width * self.bits // 8)

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, self._row_bytes(width), dtype=torch.uint8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(3, width, dtype=torch.bfloat16)

    def fit(
        self, weight: Tensor, row_weights: Tensor | None, column_weights: Tensor | None
    ) -> Tensor:
        width = weight.shape[1]
        weights = torch.ones(width) if column_weights is None else column_weights.float()
        errors = weights * code_errors(weight, row_weights)
        bits = shared_out(8 * self._row_bytes(width), errors, least=1)
        return fitted(weight, row_weights, bits)

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        return pack_codes(weight, grid, self._row_bytes(weight.shape[1]))

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        return unpack_codes(stored, grid)


def pack_codes(values: Tensor, grid: Tensor, row_bytes: int) -> Tensor:
    """Values [n, width] as codes of grid [3, width], one after another: uint8 [n, row_bytes]."""
    grid = grid.float()
    byte, shift = places(grid[2])
    codes = _codes(values, grid, levels(grid[2])).to(torch.int16) << shift
    packed = codes.new_zeros(len(codes), row_bytes + 2)
    packed.index_add_(1, byte, codes & 255)
    packed.index_add_(1, byte + 1, (codes >> 8) & 255)
    return packed[:, :row_bytes].to(torch.uint8)


def unpack_codes(stored: Tensor, grid: Tensor) -> Tensor:
    """What codes [n, bytes] of grid [3, width] stand for, float32 [n, width]."""
    grid = grid.float()
    if not stored.shape[1]:  # no column has a bit
        return grid[1].expand(len(stored), -1)
    byte, shift = places(grid[2])
    if stored.is_cpu and native.library() is not None and not torch.compiler.is_compiling():
        return _read_codes(stored, grid, byte, shift) * grid[0] + grid[1]
    last = stored.shape[1] - 1  # what is read beyond it counts for nothing
    low, high = (
        stored.index_select(1, b.clamp_max(last)).to(torch.int16) for b in (byte, byte + 1)
    )
    codes = ((low | high << 8) >> shift) & levels(grid[2]).to(torch.int16)
    return codes * grid[0] + grid[1]


def _read_codes(stored: Tensor, grid: Tensor, byte: Tensor, shift: Tensor) -> Tensor:
    """The codes as floats [n, width], unpacked by the compiled engine."""
    stored = stored.contiguous()
    last = stored.shape[1] - 1
    places = byte.clamp_max(last).int(), shift.int(), levels(grid[2]).int()
    table = native.Stored(
        rows=stored.data_ptr(),
        row_bytes=stored.shape[1],
        num_ids=len(stored),
        kind=native.KINDS["column_mixed"],
        width=grid.shape[1],
        padding=-1,
    )
    table.byte, table.bit, table.mask = (place.data_ptr() for place in places)
    codes = torch.empty(len(stored), grid.shape[1])
    at = codes.data_ptr()
    native.needed().embedcomp_rows(ctypes.byref(table), 0, len(stored), at)
    return codes


def rounded(values: Tensor, scale: Tensor, offset: Tensor, bits: Tensor) -> Tensor:
    """What values become in so many bits; all of one shape, or to be broadcast."""
    codes = ((values - offset) / scale).round_().clamp_min_(0)
    return torch.minimum(codes, levels(bits)) * scale + offset


def levels(bits: Tensor) -> Tensor:
    """Steps between the lowest and the highest code of columns with so many bits."""
    return torch.exp2(bits) - 1


def code_errors(weight: Tensor, row_weights: Tensor | None) -> Tensor:
    """Weighted squared error [MOST_BITS + 1, width] of each column with 0, 1, 2, ... bits."""
    values, weights = _histogram(weight, row_weights, BINS // 4)
    mean = (values * weights).sum(0) / weights.sum(0)
    constant = ((values - mean).square() * weights).sum(0)
    fitted = _errors_at(torch.arange(1, FITTED_BITS + 1), values, weights)
    more = [fitted[-1] / 4**bits for bits in range(1, MOST_BITS - FITTED_BITS + 1)]
    return torch.stack([constant, *fitted, *more])


def fitted(weight: Tensor, row_weights: Tensor | None, bits: Tensor) -> Tensor:
    """The grid [3, width] of columns with so many bits; one without is its mean."""
    values, weights = _histogram(weight, row_weights, BINS)
    grid = shortened(fit_grid(values, weights, levels(bits).clamp_min(1)), levels(bits))
    mean = (values * weights).sum(0) / weights.sum(0)
    constant = torch.stack([torch.ones_like(mean), mean]).bfloat16()
    return torch.cat([torch.where(bits > 0, grid, constant), bits[None].bfloat16()])


def shortened(grid: Tensor, levels: int | Tensor) -> Tensor:
    """Scales and offsets [2, width] in bfloat16, which still reach as far down and up.

    A column whose spread is small beside its mean would else fall off its grid.
    """
    scale, offset = grid
    low = offset.bfloat16()
    low = torch.where(low.float() > offset, _next(low, -torch.inf), low)
    wanted = scale + (offset - low.float()) / torch.as_tensor(levels).clamp_min(1)
    step = wanted.bfloat16()
    return torch.stack([torch.where(step.float() < wanted, _next(step, torch.inf), step), low])


def _next(values: Tensor, towards: float) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, towards))


def places(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Where each column's code begins in a row: the byte, int64, and the bit in it, int16."""
    starts = (bits.cumsum(0) - bits).long()
    return starts // 8, (starts % 8).to(torch.int16)


def _errors_at(bits: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared errors [k, width] of the columns in each number of bits [k]."""
    values, weights = values.repeat(1, len(bits)), weights.repeat(1, len(bits))  # all at once
    steps = levels(bits).repeat_interleave(values.shape[1] // len(bits))
    grid = fit_grid(values, weights, steps, refinements=0)
    off = _codes(values, grid, steps) * grid[0] + grid[1] - values
    return (off.square() * weights).sum(0).view(len(bits), -1)


def shared_out(total: int, errors: Tensor, least: int) -> Tensor:
    """Bits of each column, float32 [width]: they go where they lower the error most.

    Args:
        total: bits of a row.
        errors: [MOST_BITS + 1, width], of each column with 0, 1, 2, ... bits.
        least: bits that every column has.
    """
    gains = (errors[least:-1] - errors[least + 1 :]).T.tolist()  # by column: of each further bit
    steps = [falling(column) for column in gains]
    bits, room = [least] * len(steps), total - least * len(steps)
    waiting = [(-found[0][0], column, 0) for column, found in enumerate(steps)]
    heapq.heapify(waiting)
    while waiting and room:
        _, column, place = heapq.heappop(waiting)
        size = steps[column][place][1]
        if size > room:
            continue  # a smaller step of another column may fit
        bits[column], room = bits[column] + size, room - size
        if place + 1 < len(steps[column]):
            heapq.heappush(waiting, (-steps[column][place + 1][0], column, place + 1))
    return torch.tensor(bits, dtype=torch.float32)


def falling(gains: Sequence[float]) -> list[tuple[float, int]]:
    """Gains of one bit after another as steps: the gain a bit, which never rises, and the bits.

    A bit that brings less than those after it, or nothing at all, is worth taking with them only.
    """
    steps: list[tuple[float, int]] = []
    for gain in gains:
        steps.append((gain, 1))
        while len(steps) > 1 and steps[-2][0] < steps[-1][0]:
            (after, more), (before, taken) = steps.pop(), steps.pop()
            steps.append(((before * taken + after * more) / (taken + more), taken + more))
    return steps


def refuse_beyond(most: float, values: Tensor, storage: str) -> None:
    """Raises CannotStore if a magnitude is larger than `most`, or is not a number."""
    largest = values.abs().max().nan_to_num(torch.inf).item() if values.numel() else 0.0
    if largest > most:
        raise CannotStore(largest, storage)


def _codes(values: Tensor, grid: Tensor, levels: int | Tensor) -> Tensor:
    return ((values - grid[1]) / grid[0]).round_().clamp_min_(0).clamp_max_(levels)


def _histogram(weight: Tensor, row_weights: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    """Values [n, width] and their weights of the same shape; many become `most` bin centres."""
    n, width = weight.shape
    w = torch.ones(n) if row_weights is None else row_weights.float()
    if not w.any():
        w = torch.ones(n)
    weight, w = weight[w > 0], w[w > 0]
    if len(weight) <= most or not width:
        return weight, w[:, None].expand(weight.shape)
    low, high = weight.amin(0), weight.amax(0)
    step = ((high - low) / most).clamp_min(torch.finfo(torch.float32).tiny)
    bins = torch.zeros(width, most, dtype=torch.float64)
    for rows, mass in zip(
        torch.split(weight, 1 << 18), torch.split(w.double(), 1 << 18), strict=True
    ):
        places = ((rows - low) / step).long().clamp(0, most - 1)
        bins.scatter_add_(1, places.T, mass.expand(width, -1))
    centres = low + step * (torch.arange(most)[:, None] + 0.5)
    return centres, bins.T.float()


def fit_grid(
    values: Tensor, weights: Tensor, levels: int | Tensor, refinements: int = REFINEMENTS
) -> Tensor:
    """Scales and offsets [2, width] of small weighted squared error, each column by itself.

    Codes have heavy tails: rare ids barely move from zero, frequent ones are large. So several
    clipped ranges are tried, and the best one is refined by turns of rounding to the grid and
    fitting the grid to the rounded codes (least squares).

    Args:
        values: float32 [n, width].
        weights: of the same shape, at least one positive in a column.
        levels: steps between the lowest and the highest code, of all columns or of each [width].
    """
    best = torch.ones(2, values.shape[1])
    if not values.numel():
        return best
    weights = weights / weights.sum(0)
    mean = (values * weights).sum(0)
    seen = torch.where(weights > 0, values, mean)
    low, high = seen.amin(0) - mean, seen.amax(0) - mean
    tried = torch.tensor(SHRINKS)[:, None]
    grids = _ranges(mean + tried * low, mean + tried * high, levels)  # [tried, 2, width]
    best = _best(grids, values, weights, levels)
    for _ in range(refinements):
        refined = _least_squares(_codes(values, best, levels), values, weights, best)
        best = _best(torch.stack([refined, best]), values, weights, levels)
    return best


def _ranges(low: Tensor, high: Tensor, levels: int | Tensor) -> Tensor:
    """Grids [tried, 2, width] from the lowest to the highest values [tried, width]."""
    scale = (high - low) / levels
    return torch.stack([torch.where(scale > 0, scale, NO_SPREAD), low], 1)


def _best(grids: Tensor, values: Tensor, weights: Tensor, levels: int | Tensor) -> Tensor:
    """The best of several grids [tried, 2, width] for each column: [2, width]."""
    scale, offset = grids[:, 0, None], grids[:, 1, None]  # [tried, 1, width]
    off = ((values - offset) / scale).round_().clamp_min_(0).clamp_max_(levels)
    off = off.mul_(scale).add_(offset)
    error = off.sub_(values).square_().mul_(weights).sum(1)  # [tried, width]
    return grids.gather(0, error.argmin(0).expand(1, 2, -1))[0]


def _least_squares(codes: Tensor, values: Tensor, weights: Tensor, current: Tensor) -> Tensor:
    """The grid that maps these codes best onto the values."""
    code_mean, value_mean = (codes * weights).sum(0), (values * weights).sum(0)
    centred = (codes - code_mean) * weights
    variance = (centred * codes).sum(0)
    scale = (centred * values).sum(0) / variance
    scale = torch.where((variance > 0) & (scale > 0), scale, current[0])
    return torch.stack([scale, value_mean - scale * code_mean])
