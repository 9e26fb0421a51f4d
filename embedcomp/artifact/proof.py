"""The proof that a model's quality held: figures that travel with its artifact.

They are of rows that the model was not trained on: the first share of each piece of the validation
split, so that whoever has the log can score the same rows again (`embedcomp verify`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.log.vocabulary import Vocabulary

if TYPE_CHECKING:
    from embedcomp.support.metrics import Quality

SPLIT = "valid"
MOST_ROWS = 262_144  # that are scored, about


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model's quality; None where the rows have only one kind of label."""

    auc: float | None
    logloss: float
    calibration: float | None
    rows: int

    def __str__(self) -> str:
        auc = "-" if self.auc is None else f"{self.auc:.5f}"
        return f"AUC {auc}, log loss {self.logloss:.5f}"

    @classmethod
    def of(cls, quality: Quality) -> Figures:
        return cls(
            auc=_known(quality.auc),
            logloss=quality.logloss,
            calibration=_known(quality.calibration),
            rows=quality.rows,
        )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


_NAMES = tuple(f.name for f in fields(Figures))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured of a model, and of what it is held against, on the same rows.

    model: None: nothing could be measured, because of `reason`.
    original: the model that was compressed, or a student's teacher.
    control: the original, trained on as this model was tuned.
    scores: share of the rows by score, in the buckets of support.metrics.SCORES; of artifacts that
        were made before it was counted, empty.
    unknown_ids: share of unknown ids in the training split by feature, likewise.
    seeds: of everything that was drawn on the way to the model, by step.
    log: fingerprint of the split.
    most_rows: bound by which the split's rows were chosen, see `chosen`.
    """

    model: Figures | None
    original: Figures | None = None
    control: Figures | None = None
    scores: Sequence[float] = ()
    unknown_ids: Mapping[str, float] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    split: str = SPLIT
    log: str = ""
    most_rows: int = MOST_ROWS

    @classmethod
    def of(
        cls,
        log: ClickLog,
        model: Quality | None,
        features: Features,
        *,
        original: Figures | None = None,
        control: Figures | None = None,
        seeds: Mapping[str, int],
    ) -> Proof:
        """The proof of what was measured on the log's chosen rows; None: it has none of them."""
        unknown = {one.name: _unknown_share(one.vocabulary) for one in features.ids}
        if model is None:
            reason = f"the log has no split {SPLIT!r}"
            return cls(model=None, seeds=seeds, unknown_ids=unknown, reason=reason)
        return cls(
            model=Figures.of(model),
            scores=tuple(round(share, 7) for share in model.by_score),
            unknown_ids=unknown,
            original=original,
            control=control,
            seeds=seeds,
            log=log.fingerprint([SPLIT]),
        )

    def __str__(self) -> str:
        if self.model is None:
            return f"quality not measured: {self.reason}"
        parts = [f"{self.split} {self.model}"]
        for name, figures in (("original", self.original), ("control", self.control)):
            parts += [f"{name} {figures}"] if figures is not None else []
        return ", ".join(parts)

    def is_of(self, log: ClickLog) -> bool:
        """Whether the log has the very rows that were scored."""
        return self.split in log.schema.splits and self.log == log.fingerprint([self.split])

    def to_metrics(self) -> dict[str, Any]:
        """As a manifest keeps it: by split, the model's own figures and the rest beside them."""
        values = asdict(self)
        return {values.pop("split"): {**(values.pop("model") or {}), **values}}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Proof | None:
        """The proof in a manifest; None in artifacts that were made before there were proofs."""
        for split, values in metrics.items():
            if "most_rows" in values:
                rest = {name: v for name, v in values.items() if name not in _NAMES}
                rest["scores"] = tuple(rest.get("scores", ()))
                for name in ("original", "control"):
                    rest[name] = Figures(**rest[name]) if rest[name] else None
                own = {name: values[name] for name in _NAMES if name in values}
                return cls(split=split, model=Figures(**own) if own else None, **rest)
        return None


def _unknown_share(vocabulary: Vocabulary) -> float:
    """Share of the ids that came in the training split whose row is that of unknown ones."""
    ids = int(vocabulary.counts.sum()) - int(vocabulary.counts[vocabulary.null_row])
    return round(int(vocabulary.counts[vocabulary.unknown_row]) / max(ids, 1), 7)


def chosen(log: ClickLog, split: str, most_rows: int) -> list[tuple[Piece, int]]:
    """Every piece of a split and how many of its first rows are scored: about `most_rows` in all.

    Raises:
        BadLog: there is no such split.
    """
    pieces = log.pieces(split)
    share = min(1.0, most_rows / sum(piece.rows for piece in pieces))
    return [(piece, max(1, round(piece.rows * share))) for piece in pieces]
