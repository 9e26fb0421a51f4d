"""Codes of a few bits one after another, lowest bit first."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.columns import levels, nearest_codes
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def pack_codes(values: Tensor, grid: Tensor, row_bytes: int) -> Tensor:
    """Values [n, width] as codes of grid [3, width], one after another: uint8 [n, row_bytes]."""
    grid = grid.float()
    byte, shift = _places(grid[2])
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
    byte, shift = _places(grid[2])
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
    native.needed().embedcomp_rows(ctypes.byref(table), 0, len(stored), codes.data_ptr())
    return codes


def _places(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Where each column's code begins in a row: the byte, int64, and the bit in it, int16."""
    starts = (bits.cumsum(0) - bits).long()
    return starts // 8, (starts % 8).to(torch.int16)


def place_codes(at: native.Stored, bits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Describe codes in bits to the engine; returns the arrays that must stay alive."""
    starts = bits.cumsum() - bits
    places = [np.asarray(place, np.int32) for place in (starts // 8, starts % 8, (1 << bits) - 1)]
    at.byte, at.bit, at.mask = (native.address(place) for place in places)
    return tuple(places)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [n, k] one after another: [n, k * bits / 8], rounded up."""
    if bits == 8:
        return codes
    each, size = _word(bits)
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % each))
    shifts = bits * torch.arange(each, dtype=torch.int32, device=codes.device)
    groups = padded.view(len(codes), padded.shape[1] // each, each).int()
    words = (groups << shifts).sum(2, dtype=torch.int32)
    places = 8 * torch.arange(size, dtype=torch.int32, device=codes.device)
    packed = ((words[:, :, None] >> places) & 255).to(torch.uint8).flatten(1)
    return packed[:, : -(-codes.shape[1] * bits // 8)]


def unpack(stored: Tensor, bits: int, count: int) -> Tensor:
    """Codes int32 [n, count] of packed ones."""
    if bits == 8:
        return stored.int()
    each, size = _word(bits)
    padded = torch.nn.functional.pad(stored, (0, -stored.shape[1] % size))
    places = 8 * torch.arange(size, dtype=torch.int32, device=stored.device)
    groups = padded.view(len(stored), padded.shape[1] // size, size).int()
    words = (groups << places).sum(2, dtype=torch.int32)
    shifts = bits * torch.arange(each, dtype=torch.int32, device=stored.device)
    codes = (words[:, :, None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :count]


def _word(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and how many bytes."""
    codes = 8 // math.gcd(bits, 8)
    return codes, codes * bits // 8


def ones(words: Tensor) -> Tensor:
    """How many bits of each word int64 are 1; halves, quarters and bytes are summed in place."""
    words = words - (words >> 1 & 0x5555555555555555)
    words = (words & 0x3333333333333333) + (words >> 2 & 0x3333333333333333)
    words = words + (words >> 4) & 0x0F0F0F0F0F0F0F0F
    return words * 0x0101010101010101 >> 56
