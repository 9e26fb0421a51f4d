"""When to cut the learning rate, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from embedcomp.support.metrics import Quality


@dataclass
class Plateau:
    """Follows the validation AUC: cuts the learning rate when it stops rising, then ends the run.

    patience: evaluations without an AUC better by more than min_rise before a cut; max_fall: below
    the best AUC, at which the rate is cut at once, unless so few clicks may bring that about; cuts:
    how many before the end.
    """

    patience: int
    cuts: int
    min_rise: float
    max_fall: float = float("inf")
    best_auc: float = float("-inf")
    waited: int = 0
    cuts_made: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def see(
        self, epoch: int, valid: Quality, settled: bool = True, **also: float
    ) -> tuple[bool, bool]:
        """Take in one evaluation; tells whether it is the best yet and whether to cut now.

        Args:
            settled: whether the model has its final shape; before, nothing is the best or waited
                for.
            also: what else the history's entry records.
        """
        self.history.append({"epoch": epoch, "auc": valid.auc, "logloss": valid.logloss, **also})
        if not settled:
            self.history[-1]["settled"] = False
            return False, False
        better = not valid.auc <= self.best_auc  # NaN (one kind of label only) counts as better
        rises = not valid.auc <= self.best_auc + self.min_rise
        self.waited = 0 if rises else self.waited + 1
        if better:
            self.best_auc = valid.auc
        fallen = valid.auc < self.best_auc - max(self.max_fall, valid.auc_error)
        if self.waited < self.patience and not fallen:
            return better, False
        self.waited = 0
        self.finished = self.cuts_made == self.cuts
        self.cuts_made += not self.finished
        return better, not self.finished

    @property
    def learning_rate_factor(self) -> float:
        return 0.1**self.cuts_made
