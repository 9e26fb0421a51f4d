"""A small model, its batches and its counts."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.batches import Batch
from embedcomp.modules.embedded import Embedded, ReadsEmbedded
from embedcomp.sensitivity.layers import Found, find
from embedcomp.sensitivity.statistics import Statistics, measure

ROWS = {"a": 300, "b": 40, "c": 60}  # rows of each feature's table; bags of c have 0 to 3 ids
SINGLE = {"a", "b"}
DIM, DENSE, BATCH_ROWS = 8, 2, 64


class Small(nn.Module):
    """Deep and linear parts on three tables."""

    def __init__(self) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=f"t_{name}",
                num_embeddings=rows,
                embedding_dim=DIM,
                feature_names=[name],
                pooling=PoolingType.MEAN,
                init_fn=nn.init.normal_,
            )
            for name, rows in ROWS.items()
        ]
        inputs = DIM * len(ROWS) + DENSE
        self.embeddings = EmbeddingBagCollection(tables=tables)
        self.first = ReadsEmbedded(nn.Linear(inputs, 24))
        self.deep = nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(24, 20), nn.Dropout(0.5), nn.ReLU(), nn.Linear(20, 1)
        )
        self.wide = nn.Linear(inputs, 1)

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        x = Embedded.of(self.embeddings, sparse, dense)
        return (self.deep(self.first(x)) + 0.3 * self.wide(x.values)).squeeze(1)


def batch(seed: int, rows: int = BATCH_ROWS) -> Batch:
    generator = torch.manual_seed(seed)
    one = torch.ones(rows, dtype=torch.long)
    lengths = torch.cat([one, one, torch.randint(0, 4, (rows,), generator=generator)])
    several = int(lengths[2 * rows :].sum())
    ids = [
        (torch.rand(n, generator=generator) ** 3 * ROWS[name]).long()
        for name, n in {"a": rows, "b": rows, "c": several}.items()
    ]
    sparse = KeyedJaggedTensor(keys=list(ROWS), values=torch.cat(ids), lengths=lengths, stride=rows)
    dense = torch.randn(rows, DENSE, generator=generator)
    return Batch(dense, sparse, (torch.rand(rows, generator=generator) < 0.5).float())


@cache
def batches() -> tuple[Batch, ...]:
    return tuple(batch(seed) for seed in range(4))


def model() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def counts() -> dict[str, np.ndarray]:
    return {
        name: sum(np.bincount(b.sparse[name].values().numpy(), minlength=rows) for b in batches())
        for name, rows in ROWS.items()
    }


def measured() -> tuple[Small, Found, Statistics]:
    small = model()
    found = find(small, counts())
    return small, found, measure(small, batches(), found)


def assert_same_sums(one: Statistics, other: Statistics) -> None:
    """To the last bit."""
    found, wanted = one.to_tensors(), other.to_tensors()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
