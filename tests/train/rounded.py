"""A model whose tables and one linear layer are read through stored forms that train."""

from __future__ import annotations

from itertools import cycle

import torch
from torch import nn

from embedcomp.log.features import Features
from embedcomp.modules.linear import CompressedLinear
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping.swap import begin_far, thaw
from tests.train.test_train import small_model


def rounded_model(features: Features, floats: float = 0.0) -> nn.Module:
    """Every kind of grid that moves, thawed.

    Args:
        floats: the share of a run in which all are read in floats.
    """
    model = small_model(features)
    bags = {n: m for n, m in model.named_modules() if isinstance(m, nn.EmbeddingBag)}
    for (name, bag), kind in zip(bags.items(), cycle(range(4)), strict=False):
        rows, width = bag.weight.shape
        half = (rows // 2, rows)
        kinds = (Trellis(half, (9, 5)), "column_mixed3", Tiered(half, (2, 1)), "product2x4")
        table = CompressedBag(rows, width, "sum", StoredRows(rows, width, kinds[kind]), decode=None)
        table.fill(torch.randn(rows, width, generator=torch.manual_seed(rows)) / 3)
        model.set_submodule(name, table)
    name, linear = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    layer = CompressedLinear(linear.in_features, linear.out_features, "float32", "column_int4")
    layer.stored.fill(linear.weight.detach())
    layer.set_bias(linear.bias.detach())
    model.set_submodule(name, layer)
    begin_far(model)
    thaw(model, floats)
    return model
