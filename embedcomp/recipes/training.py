"""Train a model, or load one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.proof import (
    Proof,
)
from embedcomp.artifact.source import ModelSource, load_weights
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.recipes.save import on_validation, saved, scratch
from embedcomp.support.progress import Doing, Watch, quiet
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings


def train(
    log: ClickLog,
    features: Features,
    source: ModelSource,
    settings: TrainSettings,
    out: Path,
    *,
    start: Path | None = None,
    watch: Watch = quiet,
) -> Artifact:
    """Train (or with no epochs only load) a model and write it to `out`.

    Args:
        start: checkpoint with the weights to start from.
    """
    model = source.build(features, settings.seed)
    if start is not None:
        load_weights(model, start)
    history = fit(model, Data(log, features), settings, scratch(out), watch=watch)
    training = {"settings": asdict(settings), "history": history}
    watch(Doing("evaluating"))
    drawn = settings.epochs > 0 or start is None
    seeds = {"train": settings.seed} if drawn else {}
    proof = Proof.of(log, on_validation(model, log, features), seeds=seeds)
    return saved(out, model, features, source, training, None, proof)
