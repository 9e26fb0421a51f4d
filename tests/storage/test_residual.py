"""Rows that are sums of words of additive codebooks."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.storage import additive
from embedcomp.storage.kinds import named
from embedcomp.storage.kinds.residual import Residual
from embedcomp.storage.kmeans import words_of
from embedcomp.storage.rows import StoredRows

ENDS, STAGES, BITS = (3, 10, 24, 40), (3, 2, 1, 0), (5, 12, 4)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def filled(values: Tensor, kind: Residual, weights: Tensor | None = None) -> StoredRows:
    made = StoredRows(*values.shape, kind)
    made.fill(values, weights)
    return made


def test_rows_of_a_tier_lie_bit_by_bit_one_after_another() -> None:
    kind = Residual(ENDS, STAGES, BITS)
    assert kind.bits_of_rows == (21, 17, 5, 0)
    assert kind.tier_bytes == [8, 15, 9, 0]  # 63, 119 and 70 bits
    assert kind.empty(40, 7)["grid"].shape == (4 + 32 + 4096 + 16, 7)
    wanted = torch.stack([torch.arange(40) * 7 % (1 << bits) for bits in BITS], 1)
    stored = kind.packed(wanted)
    assert len(stored) == 32
    number = torch.tensor(STAGES)[kind.tier_of(torch.arange(40))]
    has = torch.arange(3) < number[:, None]
    assert torch.equal(kind.codes(stored), wanted * has)
    some = torch.tensor([39, 2, 2, 23, 0])
    assert torch.equal(kind.codes(stored, some), (wanted * has)[some])


def test_a_row_is_what_its_tier_begins_with_and_the_first_words() -> None:
    kind = Residual((1, 2, 3, 4), (2, 1, 1, 0), (1, 2))
    grid = torch.arange(10.0).mul(10)[:, None]  # four beginnings, two words, four words
    codes = torch.tensor([[1, 3], [1, 3], [0, 0], [1, 2]])
    state = {"stored": kind.packed(codes), "grid": grid.half()}
    wanted = [0 + 50 + 90, 10 + 50, 20 + 40, 30]
    assert kind.read(state, 1)[:, 0].tolist() == wanted


def test_codes_of_two_codebooks_are_the_best_of_all_pairs() -> None:
    words = [numbers(4, 3, seed=1), numbers(8, 3, seed=2)]
    rows = 2 * numbers(50, 3)
    pairs = torch.tensor(list(product(range(4), range(8))))
    wanted = pairs[torch.cdist(rows, additive.summed(words, pairs)).argmin(1)]
    assert torch.equal(additive.encoded(rows, words), wanted)


def test_codes_of_many_codebooks_are_not_farther_than_one_codebook_after_another() -> None:
    words = [numbers(16, 5, seed=seed) for seed in range(4)]
    rows = 2 * numbers(200, 5, seed=9)
    greedy, left = [], rows
    for own in words:
        greedy.append(torch.cdist(left, own).argmin(1))
        left = left - own[greedy[-1]]
    found = additive.encoded(rows, words)
    error = (additive.summed(words, found) - rows).square().sum(1)
    assert error.mean() < 0.8 * left.square().sum(1).mean()


def test_a_row_keeps_the_codes_that_it_has_unless_others_are_nearer() -> None:
    words = [torch.tensor([[0.0], [1.0], [1.0]])]
    rows, known = torch.tensor([[0.9], [0.9], [0.9]]), torch.tensor([[0], [1], [2]])
    assert additive.encoded(rows, words, known)[:, 0].tolist() == [1, 1, 2]


def test_words_are_fitted_to_heavy_rows_and_a_tier_begins_with_its_mean() -> None:
    values = torch.tensor([[1.0], [3.0], [10.0], [20.0], [5.0], [7.0]])
    weights = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    kind = Residual((2, 2, 4, 6), (0, 0, 1, 0), (1,))
    made = filled(values, kind, weights)
    # 1 and 3 by weight, and the plain mean of what weighs nothing
    assert made.to_float()[:, 0].tolist() == [1.5, 1.5, 10, 20, 6, 6]


@pytest.mark.parametrize("words", [256, 1024])
def test_many_words_lose_less_than_few(words: int) -> None:
    rows = numbers(4000, 4)
    found = words_of(rows, None, words)
    assert len(found) == words
    few = torch.cdist(rows, words_of(rows, None, words // 4)).amin(1).square().mean()
    assert torch.cdist(rows, found).amin(1).square().mean() < 0.6 * few


def test_fitting_codebooks_together_loses_less_than_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = numbers(1000, 4)
    kind = Residual((250, 500, 750, 1000), (3, 3, 2, 1), (4, 4, 4))
    together = (filled(values, kind).to_float() - values).square().mean()
    monkeypatch.setattr(additive, "ROUNDS", 0)
    alone = (filled(values, kind).to_float() - values).square().mean()
    assert together < 0.97 * alone


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(BadSettings, match=r"up to 2 codes in 1 tiers, of \(4,\) bits; give the"):
        Residual((5,), (2,), (4,))
    with pytest.raises(BadSettings, match="1 to 12 bits"):
        named("residual", ends=(5,), stages=(1,), bits=(13,))
