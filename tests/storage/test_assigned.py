"""Codes that are found by the loss of the rows of the log that read them."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as log_loss

from embedcomp.storage import assigned
from embedcomp.storage.assigned import AssignedRows
from embedcomp.storage.kinds.residual import Residual
from embedcomp.storage.training import Progress

AT = Progress("final", 0, 1, 1, 0)


@pytest.fixture(autouse=True)
def whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one table alone, the whole way is the best one."""
    monkeypatch.setattr(assigned, "STEP", 1.0)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def seen(rows: AssignedRows, ids: Tensor, by: Tensor, target: Tensor) -> Tensor:
    """One step of a logistic model whose logit is e @ by, without a move; gives its mean loss."""
    at = Progress("final", 0, 1, 1, 0, rows=len(ids))
    rows.train().before_step(at)
    logits = (rows.gather(ids) * by).sum(1)
    loss = log_loss(logits, target)
    loss.backward()
    p = logits.detach().sigmoid()
    curvature = float((p * (1 - p)).sum() / (p - target).square().sum())
    rows.after_step(Progress("final", 0, 1, 1, 0, len(ids), curvature))
    return loss.detach()


def thawed(ids: int, width: int, stages: tuple[int, ...], bits: tuple[int, ...]) -> AssignedRows:
    ends = tuple(ids * (tier + 1) // len(stages) for tier in range(len(stages)))
    rows = AssignedRows(ids, width, Residual(ends, stages, bits))
    rows.fill(numbers(ids, width))
    rows.thaw()
    return rows


def test_assignment_is_the_best_of_all_in_a_logistic_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six ids, four words: the loss of all 4^6 assignments is that of the log itself."""
    monkeypatch.setattr(AssignedRows, "prior", lambda *_: 0.0)
    rows = thawed(6, 2, (1,), (2,))
    assert rows.words is not None
    rows.words.data[:1], rows.words.data[1:] = (
        0.0,
        torch.tensor([[0.3, 0.3], [-0.3, 0.2], [0.1, -0.4], [0.0, 0.0]]),
    )
    wanted = torch.tensor([3, 0, 2, 1, 1, 0])
    ids = torch.arange(6).repeat(4000)
    by = numbers(len(ids), 2, seed=1)
    truth = rows.words.detach()[1:][wanted] + 0.05 * numbers(6, 2, seed=2)
    target = torch.bernoulli((truth[ids] * by).sum(1).sigmoid(), generator=torch.manual_seed(6))
    rows.stored = rows.kind.packed(torch.zeros(6, 1, dtype=torch.int64))
    seen(rows, ids, by, target)
    rows.after_epoch(AT)
    losses = {}
    per_id = torch.zeros(6, 4)
    for word in range(4):
        logits = (rows.words.detach()[1 + word] * by).sum(1)
        each = log_loss(logits, target, reduction="none")
        per_id[:, word].index_add_(0, ids, each)
    for codes in product(range(4), repeat=6):
        losses[codes] = float(per_id[torch.arange(6), list(codes)].sum())
    assert tuple(rows.kind.codes(rows.stored)[:, 0].tolist()) == min(losses, key=losses.__getitem__)


def test_gradients_of_a_row_that_moved_meanwhile_are_taken_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target of a code is the least of the sum of the quadratics of all look-ups."""
    monkeypatch.setattr(AssignedRows, "prior", lambda *_: 8.0)
    rows = thawed(8, 3, (1, 1), (2,))
    assert rows.words is not None
    terms = []  # of each look-up: id, e, g
    for step in range(5):
        ids = torch.randint(0, 8, (40,), generator=torch.manual_seed(step))
        by = numbers(40, 3, seed=step) * torch.tensor([1.0, 4.0, 0.2])
        target = torch.rand(40, generator=torch.manual_seed(step))
        e = rows.to_float().detach()[ids]
        seen(rows, ids, by, target)
        p = (e * by).sum(1).sigmoid()
        terms.append((ids, e, (p - target)[:, None] * by))
        rows.words.data += 0.1 * numbers(*rows.words.shape, seed=step)
    ids, e, g = (torch.cat(part) for part in zip(*terms, strict=True))
    now, curvature = rows.to_float().detach(), rows.curvature / len(ids)
    words = assigned._as_stored(rows.words.detach())
    rows.assign()
    found = rows.kind.codes(rows.stored)[:, 0]
    for row in range(8):
        own = ids == row

        def loss(x: Tensor, row: int = row, own: Tensor = own) -> float:
            off = x - e[own]
            rest = 8.0 * (x - now[row]) @ curvature @ (x - now[row])
            return float((g[own] * x).sum() + ((off @ curvature * off).sum() + rest) / 2)

        tier = int(row >= 4)
        losses = [loss(words[tier] + words[2 + word]) for word in range(4)]
        assert int(found[row]) == min(range(4), key=losses.__getitem__), (row, losses)


def test_rows_go_a_part_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0, a row whose target is 1 takes the word at 0.5 where a step is half the way."""
    monkeypatch.setattr(AssignedRows, "prior", lambda *_: 0.0)
    for step, word in ((1.0, 1.0), (0.5, 0.5), (0.25, 0.25)):
        monkeypatch.setattr(assigned, "STEP", step)
        rows = thawed(2, 1, (1,), (2,))
        assert rows.words is not None
        rows.words.data = torch.tensor([[0.0], [0.0], [0.25], [0.5], [1.0]])
        rows.stored = rows.kind.packed(torch.zeros(2, 1, dtype=torch.int64))
        rows.look_ups.fill_(4.0)
        rows.curvature.fill_(2.0 * 8)  # 2 a look-up
        rows.gradients.fill_(-2.0 * 4)
        rows.assign()
        assert rows.to_float().detach().tolist() == [[word], [word]]


def test_the_loss_of_the_log_does_not_rise_over_assignments() -> None:
    rows = thawed(60, 4, (3, 2, 1, 0), (3, 3, 3))
    ids = torch.randint(0, 60, (20_000,), generator=torch.manual_seed(3))
    by, truth = numbers(len(ids), 4, seed=4), numbers(60, 4, seed=5)
    target = (truth[ids] * by).sum(1).sigmoid()
    losses = []
    for _ in range(5):
        losses.append(float(seen(rows, ids, by, target)))
        rows.after_epoch(AT)
    assert losses[0] - losses[1] > 0.01
    assert all(after <= before + 1e-6 for before, after in pairwise(losses))


def test_ids_that_were_not_looked_up_keep_their_codes_and_rare_ones_mostly() -> None:
    rows = thawed(40, 2, (1, 1), (4,))
    before = rows.kind.codes(rows.stored)
    ids = torch.cat([torch.arange(10).repeat(500), torch.arange(10, 20)])
    by = numbers(len(ids), 2, seed=1)
    seen(rows, ids, by, torch.rand(len(ids), generator=torch.manual_seed(0)))
    rows.after_epoch(AT)
    moved = (rows.kind.codes(rows.stored) != before).any(1)
    assert moved[:10].float().mean() > 0.6
    assert moved[10:20].float().mean() < 0.3 and not moved[20:].any()
    assert not any(getattr(rows, name).any() for name in rows.summed)


def test_curvature_is_gauss_newtons_where_targets_are_soft() -> None:
    """p (1 - p) x x^T on average, though targets are far nearer to p than labels are."""
    rows = thawed(30, 3, (1, 1), (3,))
    ids = torch.randint(0, 30, (50_000,), generator=torch.manual_seed(0))
    by = numbers(len(ids), 3) * torch.tensor([1.0, 2.0, 0.5])
    p = (rows.to_float().detach()[ids] * by).sum(1).sigmoid()
    noise = 0.02 * torch.randn(len(ids), generator=torch.manual_seed(1))
    seen(rows, ids, by, (p + noise * (p * (1 - p)).sqrt()).clamp(0, 1))
    wanted = (p * (1 - p))[:, None, None] * by[:, :, None] * by[:, None]
    found = rows.curvature / len(ids)
    torch.testing.assert_close(found, wanted.mean(0), rtol=0.1, atol=0.01)


@pytest.mark.parametrize("deviation", [0.1, 0.2])
def test_the_prior_is_as_many_look_ups_as_tell_what_rows_deviate_by(deviation: float) -> None:
    """A look-up of p = 1/2 tells a row to a variance of 4; they deviate by the square of this."""
    rows = thawed(2000, 2, (1, 1), (1,))
    assert rows.words is not None
    rows.words.data.zero_()
    ids = torch.arange(2000).repeat(200)
    by, truth = numbers(len(ids), 2, seed=1), deviation * numbers(2000, 2, seed=2)
    p = (truth[ids] * by).sum(1).sigmoid()
    found = []
    keep = AssignedRows.prior
    rows.prior = lambda *a: found.append(keep(rows, *a)) or found[-1]  # type: ignore[method-assign]
    seen(rows, ids, by, torch.bernoulli(p, generator=torch.manual_seed(3)))
    rows.assign()
    assert found == [pytest.approx(4 / deviation**2, rel=0.25)]


def test_noise_moves_no_row() -> None:
    rows = thawed(300, 2, (1, 1), (4,))
    assert rows.words is not None
    before = rows.stored
    ids = torch.arange(300).repeat(40)
    by = numbers(len(ids), 2, seed=1)
    p = (rows.to_float().detach()[ids] * by).sum(1).sigmoid()
    seen(rows, ids, by, torch.bernoulli(p, generator=torch.manual_seed(3)))
    rows.assign()
    moved = (rows.kind.codes(before) != rows.kind.codes(rows.stored)).any(1).float().mean()
    assert moved < 0.02


def test_padding_is_no_look_up() -> None:
    rows = thawed(6, 2, (1, 1), (1,))
    ids = torch.tensor([0, 0, 3])
    rows.train().before_step(Progress("final", 0, 1, 1, 0, rows=1))
    (rows.gather(ids) * torch.tensor([[0.0], [0.0], [1.0]])).sum().backward()
    assert rows.look_ups.tolist() == [0, 0, 0, 1, 0, 0]


def test_a_batch_that_counts_for_nothing_adds_nothing() -> None:
    rows = thawed(6, 2, (1, 1), (1,))
    rows.train().before_step(AT)
    rows.gather(torch.tensor([1, 2])).sum().backward()
    assert not rows.look_ups.any() and not rows.gradients.any()


def test_drawn_words_are_as_large_as_they_should_be() -> None:
    rows = AssignedRows(4000, 3, Residual((1000, 2000, 3000, 4000), (2, 2, 2, 2), (8, 8)))
    rows.draw(torch.tensor([1.0, 3.0, 0.2]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        rows.to_float().std(0), torch.tensor([1.0, 3.0, 0.2]), rtol=0.15, atol=0
    )
    assert len(rows.kind.codes(rows.stored).unique(dim=0)) > 3500
