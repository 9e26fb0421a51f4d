"""Choose among plans by short runs.

Predicted losses are those of the forms that training begins with, and tell little about what it
makes of them. So the plan with the least of them is tried beside plans that give other methods
their turn (planned.py): each is carried out and trained for a while, the better half for longer,
and so on until one is left, which is then trained in full. This is successive halving (Jamieson
and Talwalkar 2016, arXiv:1502.07943): every round takes as long, and all of them as long as the
training that follows, unless more is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from embedcomp.planning.plan import Plan, Trial
from embedcomp.recipes import searching
from embedcomp.recipes.forming import Forming
from embedcomp.recipes.save import on_validation
from embedcomp.storage.kind import CannotStore
from embedcomp.support.files import remove, replacing
from embedcomp.support.progress import Doing, State, Watch
from embedcomp.support.version import __version__
from embedcomp.train import probe, workers
from embedcomp.train.fit import Report
from embedcomp.train.key import of_features, of_module

FOLDER = "trials"


def best(forming: Forming, plan: Plan, folder: Path, watch: Watch) -> Plan:
    """The one of a plan and the others beside it that short runs are best with.

    A run that was killed does not repeat the trials that are done, and goes on in the one that it
    was at.

    Args:
        folder: where the training that follows keeps its checkpoints and its teacher's scores.

    Returns:
        The plan without others, with what was tried.
    """
    left, settings = [plan, *plan.others], forming.settings
    if len(left) == 1 or not settings.train.epochs:
        return replace(plan, others=())
    asked = settings.trial_epochs
    epochs = settings.train.epochs if asked is None else asked
    run, trials = _Trials(forming, folder, watch), list[Trial]()
    rounds = int(math.log2(len(left)))
    for _ in range(rounds):
        found = [run(one, epochs / (rounds * len(left))) for one in left]
        order = sorted(range(len(left)), key=lambda i: _badness(found[i]))
        left = [left[i] for i in order[: len(left) // 2]]
        trials += found
    (chosen,) = left
    return replace(chosen, others=(), trials=tuple(trials))


def _badness(trial: Trial) -> tuple[float, float]:
    """Trials are sorted by their AUC, or by their log loss where rows have labels of one kind."""
    keys = -trial.auc, trial.logloss
    return math.inf if math.isnan(keys[0]) else keys[0], math.inf if trial.refused else keys[1]


def shorter(forming: Forming, plan: Plan, epochs: float, folder: Path) -> Forming:
    """What a plan is carried out with in a run of about so many epochs.

    Less than whole epochs are epochs over a share of the rows. A plan that is searched for has two
    at least, for its two stages. Weights that probes would choose are the usual ones.

    Args:
        folder: of the teacher's scores.
    """
    settings, data = forming.settings.train, forming.data
    epochs = max(epochs, min(1.0, probe.FEWEST / data.log.rows(data.train)))
    whole = max(math.ceil(epochs), 2 if searching.searches(plan) else 1)
    train = replace(settings, epochs=whole, evaluations_per_epoch=1, probes=False)
    return replace(
        forming,
        settings=replace(forming.settings, train=train),
        data=replace(data, share=epochs / whole, taught=folder),
    )


@dataclass(frozen=True, kw_only=True)
class TrialKey:
    """Everything that a trial depends on: those of one key are run once."""

    version: str
    workers: int
    settings: dict[str, Any]
    share: float
    log: str
    features: str
    model: str
    layers: list[dict[str, Any]]
    single_valued: tuple[str, ...]

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


class _Trials:
    """Short runs of one model's plans, each run once."""

    def __init__(self, forming: Forming, folder: Path, watch: Watch):
        self._forming, self._folder, self._watch = forming, folder, watch
        self._model = of_module(forming.model)
        self._features = of_features(forming.data.features)

    def __call__(self, plan: Plan, epochs: float) -> Trial:
        """What a run of so many epochs makes of a plan."""
        short = shorter(self._forming, plan, epochs, self._folder)
        place = self._folder / FOLDER / self._key(short, plan).name
        file = place.with_suffix(".json")
        if not all(workers.gathered(file.exists())):
            trial = self._run(short, plan, place)
            if workers.rank() == 0:
                with replacing(file) as fresh:
                    fresh.write_text(json.dumps(asdict(trial)))
                remove(place)
            workers.wait()
        trial = Trial(**json.loads(file.read_text()))
        self._watch(Doing("trying plans", result=str(trial)))
        return trial

    def _key(self, short: Forming, plan: Plan) -> TrialKey:
        data = short.data
        return TrialKey(
            version=__version__,
            workers=workers.count(),
            settings=asdict(short.settings),
            share=data.share,
            log=data.log.stamp([data.train, data.valid]),
            features=self._features,
            model=self._model,
            layers=[asdict(planned) for planned in plan.layers],
            single_valued=plan.single_valued,
        )

    def _run(self, short: Forming, plan: Plan, place: Path) -> Trial:
        """Carry a plan out, train it and score what would be served."""
        data, seed = short.data, short.settings.train.seed
        epochs = data.share * short.settings.train.epochs
        told = Trial(name=plan.name, bytes=plan.bytes_after, epochs=epochs)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                formed = short.form(plan, place, self._trying(plan.name))
        except CannotStore as error:
            return replace(told, refused=str(error))
        found = on_validation(formed.model, data.log, data.features)
        assert found is not None, "the run was evaluated on that split"
        size = formed.plan.bytes_after
        return replace(told, bytes=size, auc=found.auc, logloss=found.logloss)

    def _trying(self, name: str) -> Watch:
        """A watch of one run; its evaluations are not those of the training that follows."""

        def told(state: State) -> None:
            if isinstance(state, Report):
                state = replace(state, step=f"trying the plan {name}", valid=None)
            self._watch(state)

        return told
