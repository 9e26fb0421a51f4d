"""Train a model, alone or on a teacher's scores too, or load one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedcomp.artifact.artifact import MANIFEST, Artifact
from embedcomp.artifact.proof import Proof
from embedcomp.artifact.source import ModelSource, load_weights
from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.recipes.save import figures, on_validation, saved, scratch
from embedcomp.support.files import sha256
from embedcomp.support.progress import Doing, Watch, quiet
from embedcomp.train.fit import Data, fit
from embedcomp.train.key import of_features
from embedcomp.train.settings import TrainSettings


def train(
    log: ClickLog,
    features: Features,
    source: ModelSource,
    settings: TrainSettings,
    out: Path,
    *,
    start: Path | None = None,
    teacher: Artifact | None = None,
    watch: Watch = quiet,
) -> Artifact:
    """Train (or with no epochs only load) a model and write it to `out`.

    Args:
        start: checkpoint with the weights to start from.
        teacher: a model, trained or compressed, whose scores this one imitates; it has the same
            features.

    Raises:
        BadSettings: the teacher has other features, or no epoch to teach in.
    """
    if teacher is not None:
        _refuse_untaught(teacher, features, settings)
    model = source.build(features, settings.seed)
    if start is not None:
        load_weights(model, start)
    teaches = None if teacher is None else teacher.model()
    history = fit(model, Data(log, features), settings, scratch(out), teacher=teaches, watch=watch)
    training: dict[str, Any] = {"settings": asdict(settings), "history": history}
    watch(Doing("evaluating"))
    drawn = settings.epochs > 0 or start is None
    seeds = {"train": settings.seed} if drawn else {}
    original = None
    if teacher is not None:
        digest = sha256(teacher.folder / MANIFEST)
        training["teacher"] = {"folder": str(teacher.folder), "digest": digest}
        known = teacher.proof.seeds if teacher.proof is not None else {}
        seeds |= {f"teacher.{step}": seed for step, seed in known.items()}
        original = figures(teacher, log)
    measured = on_validation(model, log, features)
    proof = Proof.of(log, measured, features, original=original, seeds=seeds)
    return saved(out, model, features, source, training, None, proof)


def _refuse_untaught(teacher: Artifact, features: Features, settings: TrainSettings) -> None:
    """Raise BadSettings where a student could not be taught."""
    if not settings.epochs:
        raise BadSettings(
            f"epochs is 0, in which {teacher.folder} teaches nothing; give epochs, or no teacher"
        )
    if of_features(teacher.features) != of_features(features):
        raise BadSettings(
            f"the teacher {teacher.folder} has other features or vocabularies than its student, "
            "which reads the same batches; give the student the teacher's features"
        )
