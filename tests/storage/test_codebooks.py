from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.storage.kmeans import (
    SAMPLED,
    clusters,
    nearest,
    words_of,
)
from embedcomp.storage.packing import pack, unpack
from embedcomp.storage.pursuit import likest, pursued, summed
from embedcomp.storage.rows import StoredRows

WIDTH = 6


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def stored(storage: str, weight: torch.Tensor, *weights: torch.Tensor | None) -> StoredRows:
    made = StoredRows(*weight.shape, storage)
    made.fill(weight, *weights)
    return made


def error(storage: str, weight: torch.Tensor, *weights: torch.Tensor | None) -> torch.Tensor:
    """Squared errors of each value."""
    return (stored(storage, weight, *weights).to_float() - weight).square()


@pytest.mark.parametrize("rows", [1, 15, 16])
@pytest.mark.parametrize("storage", ["product1x4", "product2x4", "product6x8"])
def test_as_many_words_as_different_rows_are_exact(storage: str, rows: int) -> None:
    weight = numbers(rows, WIDTH).half().float()[torch.arange(300) % rows]
    assert torch.equal(stored(storage, weight).to_float(), weight)


def test_few_different_rows_of_a_large_table_are_all_found() -> None:
    weight = torch.zeros(2 * SAMPLED, 2)
    weight[[7, 11, SAMPLED + 3]] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert torch.equal(stored("product1x4", weight).to_float(), weight)


@pytest.mark.parametrize("storage", ["clustered2", "clustered3", "clustered4", "clustered8"])
def test_as_many_words_as_different_values_are_exact(storage: str) -> None:
    values = numbers(1 << int(storage[-1])).half().float()
    weight = values[torch.arange(50 * WIDTH) % len(values)].view(50, WIDTH)
    assert torch.equal(stored(storage, weight).to_float(), weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "storages",
    [
        ("product1x4", "product1x8", "product2x8", "product6x8"),
        ("clustered2", "clustered3", "clustered4", "clustered8"),
        ("sparse1x16", "sparse1x128", "sparse2x128", "sparse4x128"),
    ],
)
def test_more_bits_make_less_error(storages: tuple[str, ...]) -> None:
    weight = numbers(2000, WIDTH)
    errors = [float(error(storage, weight).mean()) for storage in storages]
    assert all(more < 0.75 * less for less, more in pairwise(errors))


@pytest.mark.parametrize("storage", ["product1x4", "product3x4", "clustered2", "sparse1x16"])
def test_rows_that_matter_more_are_stored_better(storage: str) -> None:
    weight = numbers(1000, WIDTH)
    weight[:20] *= 0.3
    heavy = torch.where(torch.arange(1000) < 20, 100.0, 0.01).double()
    even, weighted = error(storage, weight), error(storage, weight, heavy)
    assert weighted[:20].sum() < 0.5 * even[:20].sum()
    assert weighted[20:].sum() > even[20:].sum()


@pytest.mark.parametrize("storage", ["product2x4", "clustered2", "sparse1x16"])
def test_columns_that_matter_more_are_stored_better(storage: str) -> None:
    # the first column's values are spread in another place than those of the others
    weight = numbers(1000, WIDTH) + 3 * (torch.arange(WIDTH) == 0)
    columns = torch.tensor([100.0, *[1.0] * (WIDTH - 1)])
    even, weighted = error(storage, weight), error(storage, weight, None, columns)
    assert weighted[:, 0].sum() < 0.5 * even[:, 0].sum()


@pytest.mark.parametrize("storage", ["product3x8", "clustered4", "sparse2x64"])
def test_the_number_of_threads_does_not_matter(storage: str) -> None:
    weight, counts = numbers(3000, WIDTH), torch.arange(3000).double()
    before = torch.get_num_threads()
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(stored(storage, weight, counts).state_dict())
    torch.set_num_threads(before)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.parametrize("storage", ["product3x8", "clustered4", "sparse2x64"])
def test_unseen_rows_of_a_large_table_are_close_too(storage: str) -> None:
    weight = numbers(SAMPLED + 20_000, WIDTH)
    few = error(storage, weight[:SAMPLED])
    assert error(storage, weight).mean() < 1.05 * few.mean()


def test_values_cluster_where_the_least_squares_are() -> None:
    values = np.array([0.0, 1.0, 10.0, 11.0, 12.0, 40.0])
    weights = np.array([1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    assert clusters(values, weights, 3).tolist() == [0.75, 11.0, 40.0]


@given(st.integers(2, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_no_lloyd_start_finds_better_clusters(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, weights = generator.standard_normal(200) ** 3, generator.random(200) + 1e-3

    def loss(centres: np.ndarray) -> float:
        return float(weights @ ((values[:, None] - centres) ** 2).min(1))

    best = loss(clusters(values, weights, count))
    centres = generator.choice(values, count, replace=False)
    for _ in range(30):
        owner = ((values[:, None] - centres) ** 2).argmin(1)
        own = owner == np.arange(count)[:, None]
        mass = own @ weights
        centres = np.where(mass > 0, own @ (weights * values) / np.maximum(mass, 1e-300), centres)
    assert best <= loss(centres) * (1 + 1e-9)


def test_words_that_are_too_many_are_there_already() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    words = words_of(rows, None, 16)
    assert words.shape == (16, 2)
    assert {tuple(word) for word in words.tolist()} == {(1.0, 2.0), (3.0, 4.0)}


@pytest.mark.parametrize("compiled", [True, False])
def test_the_nearest_word_is_found(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    rows, words = numbers(500, 7)[:, 2:5], numbers(37, 3, seed=1)
    codes = torch.zeros(500, 2, dtype=torch.uint8)
    nearest(rows, words, codes[:, 1])
    wanted = torch.cdist(rows.double(), words.double()).argmin(1)
    assert torch.equal(codes[:, 1].long(), wanted) and not codes[:, 0].any()
    nearest(words[:1], words[:1].expand(20, 3), codes[:1, 0])  # all as near: the first one
    assert codes[0, 0] == 0


@pytest.mark.parametrize("compiled", [True, False])
def test_the_atom_that_leaves_least_is_found(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    rows, atoms = numbers(500, 5).double(), numbers(37, 5, seed=1).double()
    unit = atoms / atoms.norm(dim=1, keepdim=True)
    most = torch.rand(37, generator=torch.manual_seed(2)).double()
    times = (rows @ unit.T).clamp(-most, most)[:, :, None]
    wanted = (rows[:, None] - times * unit).norm(dim=2).argmin(1)
    assert torch.equal(likest(rows, unit, most), wanted)


@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 20), st.integers(0, 5), st.integers(0, 99))
def test_codes_are_read_as_they_were_packed(bits: int, count: int, rows: int, seed: int) -> None:
    generator = torch.manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, count), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits, count), codes.int())


def test_sums_of_orthogonal_atoms_are_found_exactly() -> None:
    atoms = torch.linalg.qr(numbers(8, 8))[0] * torch.arange(1, 9)[:, None]
    wanted = torch.tensor([[3.0, 0, 0, -2.0, 0, 0, 0, 0], [0, 0, 7.0, 0, 0, 0, 0, 100.0]])
    which, by = pursued(wanted @ atoms, atoms, 2, rounded=True)
    assert torch.equal(torch.zeros(2, 8).double().scatter_(1, which, by), wanted.double())
    assert torch.allclose(summed(atoms, which, by.float()), wanted @ atoms, atol=1e-4)


def test_pursuit_leaves_what_least_squares_leaves() -> None:
    rows, atoms = numbers(40, WIDTH), numbers(20, WIDTH, seed=1)
    which, by = pursued(rows, atoms, 3, rounded=False)
    for row, chosen, times in zip(rows.double(), which, by, strict=True):
        best = torch.linalg.lstsq(atoms[chosen].double().T, row[:, None]).solution[:, 0]
        assert torch.allclose(times, best, atol=1e-8)


def test_sparse_rows_are_stored_within_a_step_of_their_coefficients() -> None:
    atoms = torch.linalg.qr(numbers(WIDTH, WIDTH))[0]
    which = torch.randint(0, WIDTH, (500, 1), generator=torch.manual_seed(1))
    weight = atoms[which[:, 0]] * (torch.rand(500, 1, generator=torch.manual_seed(2)) + 0.5)
    assert error("sparse1x16", weight).sum(1).max() < (1.5 / 127) ** 2


@pytest.mark.parametrize("storage", ["product1x4", "product3x8", "clustered4", "sparse2x16"])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices_are_stored(storage: str, shape: tuple[int, int]) -> None:
    made = stored(storage, torch.empty(shape))
    assert made.to_float().shape == shape
    assert made.stored.shape == made.kind.empty(*shape)["stored"].shape


@pytest.mark.parametrize(
    "storage",
    [
        *("product2x5", "product4", "product0x8", "product-1x8", "clustered1", "clustered2x4"),
        *("sparse0x16", "sparse2x300", "sparse9x8"),
        *("product04x8", "product4x08", "clustered04", "sparse02x16"),  # each has one name
    ],
)
def test_a_storage_of_an_unknown_size_is_named(storage: str) -> None:
    with pytest.raises(
        BadSettings, match=f"no storage '{storage}'; (product codes|clustered|a dict)"
    ):
        StoredRows(3, 4, storage)


def test_words_are_those_of_the_rows_that_count_where_others_are_too_many() -> None:
    rows, weights = numbers(500, 2), torch.zeros(500).double()
    weights[:3] = 1
    words = {tuple(word) for word in words_of(rows, weights, 16).tolist()}
    assert words == {tuple(row) for row in rows[:3].tolist()}
