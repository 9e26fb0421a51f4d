"""Even steps whose scales train: where they begin, what they take, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from embedcomp.errors import BadSettings
from embedcomp.methods.trained import learned_scale
from embedcomp.methods.trained.learned_scale import Settings
from embedcomp.modules.linear import CompressedLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import empty_on_meta
from embedcomp.sensitivity.layer import Layer, LinearSpec, TableSpec, TableStatistics
from embedcomp.storage.kinds import of
from embedcomp.storage.kinds.tiered import Tiered

ROWS, DIM = 4000, 4
SPEC = TableSpec(name="t", rows=ROWS, dim=DIM, pooling="sum", counted=True, by_count=True)


def layer() -> Layer:
    """A table whose columns differ by far in what they spread."""
    normal = torch.randn(ROWS, DIM, generator=torch.manual_seed(6))
    weight = 3 + normal * torch.tensor([8.0, 4.0, 2.0, 1.0])
    return Layer(SPEC, weight, None, TableStatistics(torch.ones(ROWS).double()))


def test_all_columns_have_as_many_bits_and_begin_as_lsq_says_with_one() -> None:
    """Normal values: 2 mean|x - mean| / sqrt(2^0), which is also of the smallest squared error."""
    spec = replace(SPEC, dim=2 * DIM)
    weight = torch.cat([layer().weight] * 2, 1)
    found = learned_scale.compress(replace(layer(), spec=spec, weight=weight), Settings(bits=(1,)))
    assert isinstance(found, CompressedTable) and found.stored.grid is not None
    scale, _, bits = found.stored.grid[0].float()
    assert bits.eq(1).all()
    spread = (weight - weight.mean(0)).abs().mean(0)
    torch.testing.assert_close(scale, 2 * spread, rtol=0.05, atol=0)


@pytest.mark.parametrize(("asked", "given"), [(1, 2), (2, 2), (3, 4), (7, 8)])
def test_bits_that_are_left_of_a_row_s_bytes_are_shared_out(asked: int, given: int) -> None:
    found = learned_scale.compress(layer(), Settings(bits=(asked,)))
    assert isinstance(found, CompressedTable) and found.stored.grid is not None
    assert found.stored.grid[0, 2].tolist() == DIM * [given]


@pytest.mark.parametrize("bits", [(3,), (4, 3, 2, 1), (4, 0)])
def test_rows_of_a_tier_take_the_bits_of_their_columns(bits: tuple[int, ...]) -> None:
    rank = 3
    settings = Settings(bits=bits, rank=rank)
    found = learned_scale.compress(layer(), settings)
    assert isinstance(found, CompressedTable) and isinstance(found.stored.kind, Tiered)
    kind, stored = found.stored.kind, found.stored.stored
    sizes = [math.ceil(rank * number / 8) for number in bits]
    assert kind.row_bytes == tuple(sizes) and stored is not None
    assert stored.nbytes == sum(n * s for n, s in zip(kind.lengths, sizes, strict=True))
    back = of(kind.described)
    assert back == Tiered(kind.ends, kind.row_bytes)  # nothing new for what reads them
    state = empty_on_meta("learned_scale", SPEC, settings).state_dict()
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in found.state_dict().items()
    }


def test_linear_layers_take_it_in_their_own_columns() -> None:
    spec = LinearSpec(name="l", inputs=8, outputs=5, bias=True)
    assert learned_scale.candidates(spec) == [Settings(bits=(b,)) for b in range(1, 9)]
    found = learned_scale.empty(spec, Settings(bits=(3,)))
    assert isinstance(found, CompressedLinear) and found.stored.kind.row_bytes == (3,)
    none = LinearSpec(name="l", inputs=0, outputs=5, bias=True)
    assert not learned_scale.candidates(none)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(bits=(3, 2)), "give a rank to have tiers"),
        (Settings(bits=(9,)), "bits holds 9, but numbers of t have 0 to 8 bits"),
        (Settings(bits=(3,), rank=5), "rank is 5, but t can be described by 1 to 4 numbers"),
        (
            Settings(bits=(6, 5, 4, 3, 2, 1), rank=2),
            "row_bytes holds 6 numbers, but t can have 1 or 2 or 3 or 4 or 5 or 8 tiers",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        learned_scale.empty(SPEC, settings)


def test_a_linear_layer_has_no_numbers_a_row() -> None:
    spec = LinearSpec(name="l", inputs=8, outputs=5, bias=True)
    with pytest.raises(BadSettings, match="l can be described by no numbers a row"):
        learned_scale.empty(spec, Settings(bits=(3,), rank=2))
