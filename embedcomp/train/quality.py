"""Quality of a model that is in memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.support.metrics import Quality

EVALUATION_ROWS = 8192  # rows scored at a time


@torch.no_grad()  # not inference_mode, in which fbgemm's fused tables have no CPU kernel
def quality(
    model: nn.Module,
    log: ClickLog,
    features: Features,
    pieces: Iterable[Piece],
    rows_per_piece: int | None = None,
) -> Quality:
    """Quality of the model's logits over the pieces; shards add up.

    Args:
        rows_per_piece: score only so many rows of each piece.
    """
    found = Quality()
    was_training = model.training
    model.eval()
    for batch in in_order(log, features, pieces, EVALUATION_ROWS, rows_per_piece):
        logits = model(batch.dense, batch.sparse).view(-1)
        found.add(logits.float().numpy(), batch.labels.numpy())
    model.train(was_training)
    return found
