"""What several workers have to end with: one process that trains on their batches together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.batches import Batch, Shuffled
from embedcomp.train import workers
from embedcomp.train.fit import Data
from embedcomp.train.optim import optimizers
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables


def train_joined(
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    count: int,
    teacher: nn.Module | None = None,
) -> None:
    """One epoch in place, at the learning rate of its begin, on the joined batches of workers."""
    with fast_tables(model):
        steps = optimizers(model, settings, data.log.rows(data.train))
        for batch in joined(data, settings, count):
            for optimizer in steps:
                optimizer.zero_grad()
            logits = model(batch.dense, batch.sparse).view(-1)
            wanted = batch.labels
            if teacher is not None and settings.distil is not None:
                taught = teacher(batch.dense, batch.sparse).detach().view(-1).sigmoid()
                wanted = (1 - settings.distil) * wanted + settings.distil * taught
            binary_cross_entropy_with_logits(logits, wanted).backward()
            for optimizer in steps:
                optimizer.step()


def joined(data: Data, settings: TrainSettings, count: int) -> Iterator[Batch]:
    """The first epoch: what all workers train in one step as one batch."""
    streams = [
        Shuffled(data.log, data.features, share, settings.batch_rows).batches((settings.seed, 0))
        for share in workers.shares(data.log.pieces(data.train), count)
    ]
    for batches in zip_longest(*streams):
        yield _one([batch for batch in batches if batch is not None])


def _one(batches: list[Batch]) -> Batch:
    keys = batches[0].sparse.keys()
    columns = [batch.sparse.to_dict() for batch in batches]
    sparse = KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([found[key].values() for key in keys for found in columns]),
        lengths=torch.cat([found[key].lengths() for key in keys for found in columns]),
    )
    dense = torch.cat([batch.dense for batch in batches])
    return Batch(dense, sparse, torch.cat([batch.labels for batch in batches]))
