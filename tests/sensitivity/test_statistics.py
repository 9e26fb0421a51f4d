from __future__ import annotations

import pickle
import weakref

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp import recipes
from embedcomp.log.batches import Batch
from embedcomp.log.click_log import Piece
from embedcomp.recipes import measuring
from embedcomp.sensitivity.layers import find
from embedcomp.sensitivity.statistics import LookedUp, Statistics, measure
from tests import small


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_statistics_of_shards_add_up():
    model, found, whole = small.measured()
    total = measure(model, small.batches()[:1], found)
    total += measure(model, small.batches()[1:], found)
    small.assert_same_sums(total, whole)
    assert whole.samples == 4 * small.BATCH_ROWS


@pytest.mark.parametrize("count_ids", [False, True])
def test_statistics_do_not_depend_on_the_number_of_threads(count_ids):
    """To the last bit: batches are summed up in their order."""
    model, found, _ = small.measured()
    batches = [*small.batches(), *(small.batch(seed) for seed in range(4, 12))]
    alone = measure(model, batches, found, count_ids=count_ids)
    twins = [small.model(), small.model()]
    together = measure(model, batches, found, count_ids=count_ids, twins=twins)
    small.assert_same_sums(together, alone)
    assert not any(module._forward_hooks for twin in twins for module in twin.modules())
    assert all(p.requires_grad for twin in twins for p in twin.parameters())


def test_a_batch_that_cannot_be_scored_says_so_from_any_thread():
    model, found, _ = small.measured()
    batches = [*small.batches(), None]
    with pytest.raises(AttributeError):
        measure(model, batches, found, twins=[small.model()])


def test_inputs_and_gradients_of_a_linear_layer():
    model, found, statistics = small.measured()
    x, gradients = [], []
    for b in small.batches():
        embedded = torch.cat([model.embeddings(b.sparse).values(), b.dense], 1)
        x.append(embedded.detach().double())
        p = torch.sigmoid(model(b.dense, b.sparse)).detach().double()
        gradients.append(0.3 * (p * (1 - p)).sqrt()[:, None])  # dz/dy is 0.3 for `wide`
    x, g = torch.cat(x), torch.cat(gradients)
    layer = statistics.measured(found).layers["wide"]
    assert close(layer.inputs.mean, x.mean(0))
    assert close(layer.inputs.second, x.T @ x / len(x))
    assert close(layer.gradient, g.T @ g / len(g))


def test_gradients_of_a_pooled_table_are_shared_among_its_rows():
    """One batch, rows perturbed at random: the prediction is the mean change it causes."""
    model, found, _ = small.measured()
    b = small.batches()[0]
    statistics = measure(model, [b], found)
    layer = statistics.measured(found).layers["embeddings.embedding_bags.t_c"]
    weight = model.embeddings.embedding_bags["t_c"].weight
    z = model(b.dense, b.sparse).detach().double()
    p = torch.sigmoid(z)
    generator, costs = torch.manual_seed(0), []
    with torch.no_grad():
        for _ in range(300):
            noise = 1e-3 * torch.randn(weight.shape, generator=generator)
            weight += noise
            off = model(b.dense, b.sparse).double() - z
            weight -= noise
            costs.append(float((0.5 * p * (1 - p) * off**2).mean()))
    predicted = 0.5 * float(layer.gradient.trace()) * 1e-6
    assert predicted == pytest.approx(sum(costs) / len(costs), rel=0.15)


def distinct(rows=24):
    """A batch in whose bags no id comes twice."""
    generator = torch.manual_seed(7)
    one, lengths = torch.ones(rows, dtype=torch.long), torch.arange(rows) % 4
    bags = [3 * b + torch.arange(n) for b, n in enumerate(lengths.tolist())]
    a, b = (torch.randint(0, n, (rows,), generator=generator) for n in (300, 40))
    values, lengths = torch.cat([a, b, *bags]) % 40, torch.cat([one, one, lengths])
    sparse = KeyedJaggedTensor(keys=list(small.ROWS), values=values, lengths=lengths, stride=rows)
    dense = torch.randn(rows, small.DENSE, generator=generator)
    return Batch(dense, sparse, torch.zeros(rows))


def test_squared_gradients_of_rows_are_those_of_one_sample_after_the_other():
    model, batch = small.model(), distinct()
    found = find(model, {})
    layers = measure(model, [batch], found).measured(found).layers
    weights = {name: model.get_submodule(name).weight for name in layers}
    wanted = {name: torch.zeros(len(w)).double() for name, w in weights.items()}
    logits = model(batch.dense, batch.sparse)
    for z in logits:
        p = float(torch.sigmoid(z))
        found = torch.autograd.grad(z, list(weights.values()), retain_graph=True)
        for name, gradient in zip(weights, found, strict=True):
            wanted[name] += p * (1 - p) * gradient.double().square().sum(1) / len(logits)
    assert len(layers) == 7
    for name, layer in layers.items():
        assert float(wanted[name].max()) > 0 and close(layer.fisher, wanted[name]), name


def test_the_spread_of_inputs_is_from_the_smallest_to_the_largest_with_zero():
    model = nn.Sequential(nn.Linear(3, 1))
    x = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 3.0, 0.5], [-5.0, -2.0, -1.0]])
    found = find(model, {})
    layer = measure(model, [x], found, lambda m, x: m(x)).measured(found).layers["0"]
    assert layer.inputs.spread == pytest.approx((4.0**2 + 4.0**2 + 5.0**2) / 3)


def test_measuring_leaves_the_model_as_it_was():
    model = small.model().train()
    model.wide.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    measure(model, small.batches()[:1], find(model, {}))
    assert model.training and model.deep[2].training
    assert not model.wide.weight.requires_grad and model.wide.bias.requires_grad
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Twice(nn.Module):
    """Calls one layer twice, another on a sequence, and a third never."""

    def __init__(self):
        super().__init__()
        self.twice, self.sequence = nn.Linear(2, 2), nn.Linear(2, 1)
        self.never, self.useless = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, dense, sparse):
        self.useless(dense)
        both = torch.stack([self.twice(dense), self.twice(self.twice(dense))], 1)  # [B, 2, 2]
        return self.sequence(both).sum((1, 2))


def test_layers_may_be_called_several_times_or_never():
    model, found = Twice(), find(Twice(), {})
    b = Batch(torch.randn(10, 2), small.batches()[0].sparse, torch.zeros(10))
    statistics = measure(model, [b], found)
    assert statistics.sums["twice|rows"] == 30 and statistics.sums["sequence|rows"] == 20
    measured = statistics.measured(found)
    assert list(measured.layers) == ["twice", "sequence"]
    assert set(measured.refused) == {"never", "useless"}
    assert "does not change the score, on any row" in measured.refused["never"]


def test_statistics_come_back_from_their_tensors():
    _, _, statistics = small.measured()
    back = Statistics.from_tensors(statistics.to_tensors())
    assert back.samples == statistics.samples
    small.assert_same_sums(back, statistics)
    assert all(value.dtype == torch.float64 for value in statistics.to_tensors().values())


def test_without_a_log_the_layers_stay_as_they_are():
    found = find(small.model(), {})
    assert Statistics().measured(found) is found


def test_sums_of_rows_are_those_of_whole_tables():
    """In the order of adding, so to the last bit; and no larger than a table."""
    generator = torch.manual_seed(0)
    for rows in (1, 5, 1000):
        found, whole = LookedUp(rows), torch.zeros(rows, dtype=torch.float64)
        for n in (0, 7, 200, 0, 3):
            ids = torch.randint(0, rows, (n,), generator=generator)
            values = torch.rand(n, generator=generator).double()
            found.add(ids, values)
            whole.index_add_(0, ids, values)
            assert sum(len(part) for part, _ in found._parts) <= 2 * rows + 7
        ids, sums = found.added_up()
        assert torch.equal(ids, whole.nonzero()[:, 0]) and torch.equal(sums, whole[ids])


def test_a_piece_holds_the_rows_that_it_looked_up():
    model, found, whole = small.measured()
    pieces = [measure(model, [batch], found, count_ids=True) for batch in small.batches()]
    for piece in pieces:
        assert "embeddings.embedding_bags.t_a|fisher" not in piece.sums
        for name, looked_up in piece.looked_up.items():
            ids, _ = looked_up.added_up()
            assert len(ids) <= min(looked_up.rows, 3 * small.BATCH_ROWS), name
    sent = [pickle.loads(pickle.dumps(piece)) for piece in pieces]
    total = recipes.total(sent)
    again = Statistics()
    for piece in pieces:
        again += Statistics.from_tensors(piece.to_tensors())
    small.assert_same_sums(total, again)
    for name, tensor in whole.to_tensors().items():
        assert close(total.to_tensors()[name].float(), tensor.float()), name


def test_a_total_holds_no_piece_but_the_present_one():
    model, found, _ = small.measured()
    alive = []

    def pieces():
        for batch in small.batches():
            piece = measure(model, [batch], found)
            alive.append(weakref.ref(piece))
            yield piece
            del piece
            assert sum(one() is not None for one in alive) <= 2

    assert recipes.total(pieces()).samples == 4 * small.BATCH_ROWS


def test_few_rows_of_a_long_log_are_read_in_some_of_its_pieces():
    pieces = [Piece("train", "x", group, 1000) for group in range(1000)]
    assert measuring.spread(pieces[:256], 65_536) == pieces[:256]
    assert measuring.spread(pieces, 65_536) == pieces[::4]
    assert measuring.spread(pieces, 10) == pieces[:1]
