"""A teacher's scores of the rows that its student trains on, computed once and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import nn

from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.support.files import replacing
from embedcomp.support.progress import Counter, Watch, quiet
from embedcomp.support.version import __version__
from embedcomp.train import workers
from embedcomp.train.key import of_features, of_module
from embedcomp.train.quality import EVALUATION_ROWS
from embedcomp.train.tables import fast_tables


@dataclass(frozen=True, kw_only=True)
class ScoresKey:
    """Everything that a teacher's scores depend on: runs of one key read one file."""

    version: str
    workers: int  # where a worker's share ends, so does a batch, which moves a logit's last bits
    log: str
    split: str
    features: str
    teacher: str

    @classmethod
    def of(cls, teacher: nn.Module, log: ClickLog, split: str, features: Features) -> ScoresKey:
        return cls(
            version=__version__,
            workers=workers.count(),
            log=log.stamp([split]),
            split=split,
            features=of_features(features),
            teacher=of_module(teacher),
        )

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


class TeacherScores:
    """A teacher's logits of every row of a split, by piece.

    Args:
        pieces: of the split, in the log's order.
        logits: float16 [rows of the split], in that order.
    """

    def __init__(self, pieces: Sequence[Piece], logits: np.ndarray):
        ends = accumulate(piece.rows for piece in pieces)
        self._starts = {
            (piece.file, piece.row_group): end - piece.rows
            for piece, end in zip(pieces, ends, strict=True)
        }
        self._logits = np.asarray(logits)  # plain, though it lie in a file

    def __call__(self, piece: Piece) -> np.ndarray:
        """Logits of the rows of a piece or of a part of one, float16 [rows]."""
        start = self._starts[piece.file, piece.row_group] + piece.first
        return self._logits[start : start + piece.rows]

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        log: ClickLog,
        split: str,
        features: Features,
        folder: Path,
        watch: Watch = quiet,
    ) -> TeacherScores:
        """The scores as a file in `folder` has them, which is made where it is not there.

        Of several workers each scores its share, and the first one writes the file.
        """
        pieces = log.pieces(split)
        file = folder / f"{ScoresKey.of(teacher, log, split, features).name}.taught.npy"
        if not all(workers.gathered(file.exists())):
            shares = workers.gathered(_logits(teacher, log, features, workers.share(pieces), watch))
            if workers.rank() == 0:
                with replacing(file) as fresh:
                    np.save(fresh, np.concatenate(shares))
            workers.wait()
        return cls(pieces, np.load(file, mmap_mode="r"))


@torch.no_grad()  # not inference_mode, in which fbgemm's fused tables have no CPU kernel
def _logits(
    teacher: nn.Module, log: ClickLog, features: Features, pieces: Sequence[Piece], watch: Watch
) -> np.ndarray:
    """The teacher's logits of the pieces' rows, float16 [rows]: a score is off by 1e-4 at most."""
    counted = Counter(watch, "scoring with the teacher", sum(p.rows for p in pieces), "rows")
    found = []
    with fast_tables(teacher.eval()):
        for batch in counted.over(in_order(log, features, pieces, EVALUATION_ROWS), len):
            logits = teacher(batch.dense, batch.sparse).view(-1)
            found.append(logits.to(torch.float16).numpy())
    return np.concatenate(found)
