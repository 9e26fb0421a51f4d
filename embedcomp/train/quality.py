"""Quality of a model that is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from embedcomp.log.batches import in_order, made_up_row
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.support.metrics import Quality
from embedcomp.train import workers

EVALUATION_ROWS = 8192  # rows scored at a time


@torch.no_grad()  # not inference_mode, in which fbgemm's fused tables have no CPU kernel
def quality(
    model: nn.Module,
    log: ClickLog,
    features: Features,
    pieces: Sequence[Piece],
    rows_per_piece: int | None = None,
    in_step: bool = False,
) -> Quality:
    """Quality of the model's logits over the pieces; shards add up.

    Args:
        rows_per_piece: score only so many rows of each piece.
        in_step: all workers score their pieces at once, and the model is collective: one that has
            fewer batches than another scores a made-up row in the place of each.
    """
    found, left = Quality(), 0
    if in_step:
        batches = sum(-(-piece.rows // EVALUATION_ROWS) for piece in pieces)
        left = workers.most(batches) - batches
    was_training = model.training
    model.eval()
    for batch in in_order(log, features, pieces, EVALUATION_ROWS, rows_per_piece):
        logits = model(batch.dense, batch.sparse).view(-1)
        found.add(logits.float().numpy(), batch.labels.numpy())
    for _ in range(left):
        batch = made_up_row(features)
        model(batch.dense, batch.sparse)
    model.train(was_training)
    return found
