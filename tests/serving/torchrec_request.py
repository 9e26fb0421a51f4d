"""What TorchRec's own client sends."""

from __future__ import annotations

import numpy as np

from embedcomp.serving.wire import predictor_pb2 as theirs


def torchrec_request(
    dense: np.ndarray, ids: np.ndarray, lengths: np.ndarray, kind: str
) -> theirs.PredictionRequest:
    """A request of two dense features and two of ids, which are sent as numbers of this kind.

    Args:
        dense: float32 [B, 2]; ids: of both features; lengths: [2 * B].
    """
    return theirs.PredictionRequest(
        batch_size=len(dense),
        float_features=theirs.FloatFeatures(num_features=2, values=dense.tobytes()),
        id_list_features=theirs.SparseFeatures(
            num_features=2,
            lengths=lengths.astype("<i4").tobytes(),
            values=ids.astype(kind).tobytes(),
        ),
        id_score_list_features=theirs.SparseFeatures(num_features=0),
        embedding_features=theirs.FloatFeatures(num_features=0),
        unary_features=theirs.SparseFeatures(num_features=0),
    )
