from __future__ import annotations

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.modules.embedded import Embedded, ReadsEmbedded, fold
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.decode import Affine
from embedcomp.storage.rows import StoredRows

DIM, DENSE = 4, 2
SINGLE = {"a", "b"}


class Reads(nn.Module):
    """A linear layer on the embedded values, beside a sum of the values themselves."""

    def __init__(self, bias=True):
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=f"t_{name}",
                num_embeddings=10,
                embedding_dim=DIM,
                feature_names=features,
                pooling=PoolingType.MEAN,
            )
            for name, features in {"ab": ["a", "b"], "c": ["c"]}.items()
        ]
        self.embeddings = EmbeddingBagCollection(tables=tables)
        self.first = ReadsEmbedded(nn.Linear(3 * DIM + DENSE, 5, bias=bias))

    def forward(self, dense, sparse):
        x = Embedded.of(self.embeddings, sparse, dense)
        return self.first(x).sum(1) + x.values.sum(1)


def batch():
    """Features a and b have one id a row; bags of c are empty, longer, single."""
    lengths = torch.tensor([1, 1, 1, 1, 1, 1, 0, 2, 1])
    sparse = KeyedJaggedTensor(
        keys=["a", "b", "c"], values=torch.tensor([1, 2, 3, 9, 0, 4, 5, 6, 7]), lengths=lengths
    )
    return torch.randn(3, DENSE, generator=torch.manual_seed(1)), sparse


def compressed_bag(k, seed):
    generator = torch.manual_seed(seed)
    decode = Affine(k, DIM, "float32", bias=True)
    decode.fill(torch.randn(k, DIM, generator=generator), torch.randn(DIM, generator=generator))
    bag = CompressedBag(10, DIM, "mean", StoredRows(10, k, "column_int8"), decode=decode)
    bag.fill(torch.randn(10, k, generator=generator))
    return bag


def swapped(bias=True):
    torch.manual_seed(0)
    model = Reads(bias)
    model.embeddings.embedding_bags["t_ab"] = compressed_bag(2, 1)
    model.embeddings.embedding_bags["t_c"] = compressed_bag(3, 2)
    return model


def test_values_are_the_tables_in_order_and_then_the_dense_features():
    model, (dense, sparse) = Reads(), batch()
    x = Embedded.of(model.embeddings, sparse, dense)
    assert torch.equal(x.values, torch.cat([model.embeddings(sparse).values(), dense], 1))
    assert torch.equal(x.codes, x.values)


def test_folding_leaves_the_outputs_as_they_were():
    for bias in (True, False):
        model, (dense, sparse) = swapped(bias), batch()
        before = model(dense, sparse)
        assert fold(model, SINGLE) == ["first.linear"]
        assert model.first.linear.in_features == 2 + 2 + DIM + DENSE  # c may be empty
        assert torch.allclose(model(dense, sparse), before, atol=1e-5)


def test_tables_that_may_have_empty_bags_are_not_folded():
    model, (dense, sparse) = swapped(), batch()
    before = model(dense, sparse)
    assert fold(model, {"a"}) == []  # a and b share a table
    assert torch.equal(model(dense, sparse), before)


def test_plain_tables_are_not_folded():
    assert fold(Reads(), SINGLE) == []


def test_features_may_come_in_any_order():
    model, (dense, sparse) = swapped(), batch()
    fold(model, SINGLE)
    assert torch.equal(model(dense, sparse.permute([2, 0, 1])), model(dense, sparse))
