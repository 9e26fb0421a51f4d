"""How numbers are stored: plain floats, integers with a scale a row, integers with one a column.

A format turns float32 rows into stored rows and back, each row by itself, so that rounding some
rows of a table gives what rounding the whole table gives. What all rows share (the columns' scales,
offsets and bits) is its `grid`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal, NewType, Protocol, get_args

import fbgemm_gpu  # noqa: F401 - registers the operators of row-wise integers
import torch
from torch import Tensor

from embedcomp.errors import EmbedcompError
from embedcomp.kernels import native
from embedcomp.kernels.bits import parsed
from embedcomp.storage.columns import (
    Columns,
    levels,
    nearest_codes,
    shared_out,
    shortened,
)

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

    def fit(self, columns: Columns, column_weights: Tensor | None) -> Tensor | None:
        """The grid for these columns, or None for a format without one. Raises CannotStore.

        Args:
            column_weights: [width], how much a squared error in a column matters; None: all the
                same.
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
        from embedcomp.storage.codebooks import codebook_format  # which reads this file

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

    def fit(self, columns: Columns, column_weights: Tensor | None) -> None:
        if self.dtype == torch.float16:
            refuse_beyond(FP16_MAX, columns.values, "float16")

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

    def fit(self, columns: Columns, column_weights: Tensor | None) -> None:
        # the smallest of a row is stored in fp16
        refuse_beyond(FP16_MAX, columns.values, f"row_int{self.bits}")

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

    def fit(self, columns: Columns, column_weights: Tensor | None) -> None:
        refuse_beyond(127 * FP16_MAX, columns.values, "symmetric_int8")

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

    def fit(self, columns: Columns, column_weights: Tensor | None) -> Tensor:
        return shortened(columns.grid(self.levels), self.levels)

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        codes = nearest_codes(weight, grid.float(), self.levels).to(torch.uint8)
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

    def fit(self, columns: Columns, column_weights: Tensor | None) -> Tensor:
        matters = torch.ones(columns.width) if column_weights is None else column_weights.float()
        row_bits = 8 * self._row_bytes(columns.width)
        return columns.fitted(shared_out(row_bits, matters * columns.errors(), least=1))

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
    codes = nearest_codes(values, grid, levels(grid[2])).to(torch.int16) << shift
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


def places(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Where each column's code begins in a row: the byte, int64, and the bit in it, int16."""
    starts = (bits.cumsum(0) - bits).long()
    return starts // 8, (starts % 8).to(torch.int16)


def refuse_beyond(most: float, values: Tensor, storage: str) -> None:
    """Raises CannotStore if a magnitude is larger than `most`, or is not a number."""
    largest = values.abs().max().nan_to_num(torch.inf).item() if values.numel() else 0.0
    if largest > most:
        raise CannotStore(largest, storage)
