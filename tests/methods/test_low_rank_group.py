"""Tables of one width that share a decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedcomp.errors import BadSettings
from embedcomp.methods import low_rank
from embedcomp.methods.baselines import low_rank_group
from embedcomp.sensitivity.layer import Layer, TableSpec, TableStatistics
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.rows import keeping_unrounded

DIM, RANK = 8, 3


def space(seed=0):
    """Orthonormal rows [RANK, DIM]."""
    generator = torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(DIM, RANK, generator=generator))[0].T


def table(name, rows, basis, seed, gradient=None):
    """Rows around a mean of their own, off it by numbers times the basis; some are rare."""
    generator = torch.manual_seed(seed)
    codes = torch.randn(rows, len(basis), generator=generator)
    weight = codes @ basis + torch.randn(DIM, generator=generator)
    counts = torch.randint(1, 50, (rows,), generator=generator).double()
    spec = TableSpec(name=name, rows=rows, dim=DIM, pooling="mean")
    return Layer(spec, weight, None, TableStatistics(counts, gradient))


def metric(seed):
    root = torch.randn(DIM, DIM, generator=torch.manual_seed(seed), dtype=torch.float64)
    return root @ root.T / DIM


def grouped(*tables):
    return [replace(table, group=tables) for table in tables]


def settings(rank=RANK, most=RANK, storage="float32"):
    return low_rank_group.Settings(rank=rank, most=most, storage=storage)


@torch.no_grad()
@pytest.mark.parametrize("gradients", [(None, None), (1, 2)])
def test_tables_in_one_space_are_recovered_by_one_decoder(gradients):
    shared = space()
    measured = [None if seed is None else metric(seed) for seed in gradients]
    tables = [table(f"t{i}", 20 + 5 * i, shared, i, g) for i, g in enumerate(measured)]
    served = [low_rank_group.compress(layer, settings()) for layer in grouped(*tables)]
    for layer, made in zip(tables, served, strict=True):
        assert torch.allclose(made.to_float(), layer.weight, atol=1e-5)
    first, second = (made.decode.stored.stored for made in served)
    assert torch.equal(first, second)
    wanted = shared.T @ shared
    found = torch.linalg.lstsq(first.T, shared.T).solution
    assert torch.allclose(first.T @ found @ torch.linalg.pinv(shared.T), wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("by_loss", [False, True])
@pytest.mark.parametrize("heavy", [0, 1])
def test_the_decoder_is_for_the_table_that_weighs_more(heavy, by_loss):
    """By its look-ups, or by what the loss feels of it where that was measured of all."""
    eye = torch.eye(DIM)
    tables = [table(f"t{i}", 200, eye[i : i + 1], i) for i in range(2)]  # a direction each
    weights = [20.0 if i == heavy else 1.0 for i in range(2)]
    tables = [
        replace(
            of,
            statistics=TableStatistics(
                of.counts * (1 / w if by_loss else w), w * eye.double() if by_loss else None
            ),
        )
        for of, w in zip(tables, weights, strict=True)
    ]
    made = low_rank_group.compress(grouped(*tables)[0], settings(rank=1, most=1))
    (direction,) = made.decode.stored.to_float().abs()
    assert direction[heavy] > 0.95 * direction.norm()


@torch.no_grad()
def test_a_table_of_fewer_columns_uses_the_first_rows():
    steep = torch.diag(torch.tensor([4.0, 1.0, 0.25])) @ space()
    tables = [table(f"t{i}", 400, steep, i) for i in range(2)]
    narrow, wide = grouped(*tables)
    made = low_rank_group.compress(narrow, settings(rank=1))
    other = low_rank_group.compress(wide, settings())
    assert torch.equal(made.decode.stored.stored, other.decode.stored.stored)
    assert torch.equal(made.decode.matrix(), other.decode.matrix()[:1])
    best = low_rank.compress(narrow, low_rank.Settings(rank=1))
    assert predicted_loss(narrow, made) < 1.1 * predicted_loss(narrow, best)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_codes_are_the_best_for_the_tables_own_gradients(seed):
    tables = [table(f"t{i}", 30, torch.eye(DIM), i, metric(i)) for i in range(2)]
    layer = grouped(*tables)[1]
    served = low_rank_group.compress(layer, settings())
    before = predicted_loss(layer, served)
    generator = torch.manual_seed(seed)
    codes = served.stored.to_float().clone()
    for step in (-0.1, 0.1):
        served.stored.fill(codes + step * torch.randn(codes.shape, generator=generator))
        assert predicted_loss(layer, served) > before


@torch.no_grad()
@pytest.mark.parametrize("storage", ["column_int8", "column_mixed3"])
def test_rounding_does_not_move_the_mean_of_what_is_looked_up(storage):
    tables = [table(f"t{i}", 60, space(), i) for i in range(2)]
    layer = grouped(*tables)[0]
    with keeping_unrounded():
        served = low_rank_group.compress(layer, settings(storage=storage))
    bias = served.decode.stored_bias.unrounded[0]
    assert torch.equal(served.decode.bias, bias.half().float())
    off = (served.to_float() - served.decode.bias + bias - layer.weight).double()
    assert (layer.counts @ off / layer.counts.sum()).abs().max() < 1e-5
    assert off.abs().max() > 1e-4


@pytest.mark.parametrize(("rank", "most"), [(0, 3), (4, 3), (3, 9)])
def test_rows_that_a_decoder_cannot_have_are_refused(rank, most):
    with pytest.raises(BadSettings, match=f"t0 has 8 columns.*not {rank} of {most}"):
        low_rank_group.compress(table("t0", 5, space(), 0), settings(rank, most))
