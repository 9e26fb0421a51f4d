"""The steps of a compression job: count -> train -> measure -> compress, control -> evaluate.

out/count/            features: vocabularies and dense scales of the training split
out/model/N/          the trained model
out/statistics/       sums over the log that compression is planned from
out/artifact/N/       the compressed model
out/control/N/        the original, trained on as the compressed model was tuned
out/evaluation.json   original, control and compressed on the test split
out/.steps/           what each of these was made from
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from embedcomp import evaluate, recipes
from embedcomp.artifact import Artifact
from embedcomp.compress.sizes import model_bytes
from embedcomp.compress.statistics import Statistics
from embedcomp.errors import BadSettings
from embedcomp.files import remove, replacing, sha256
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.counts import LogCounts, count
from embedcomp.log.features import Features
from embedcomp.metrics import Quality
from embedcomp.settings import CompressSettings, JobSettings
from embedcomp.source import ModelSource
from embedcomp.train.fit import Watch
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables
from pipelines import shards
from pipelines.cluster import cpus_of_each
from pipelines.records import Records
from pipelines.shards import Shards
from pipelines.training import Makes, on_workers

TRAIN, VALID, TEST = "train", "valid", "test"
STATISTICS = "statistics.safetensors"


def located(settings: JobSettings) -> JobSettings:
    """The same job with paths that do not depend on the folder it was called from.

    Raises:
        BadSettings: `out` is not a folder.
    """
    if "://" in settings.out:
        raise BadSettings(
            f"out is {settings.out}, but must be a folder (on storage that all nodes share)"
        )
    log = settings.log if "://" in settings.log else str(Path(settings.log).absolute())
    start = str(Path(settings.checkpoint).absolute()) if settings.checkpoint else ""
    return replace(settings, log=log, out=str(Path(settings.out).absolute()), checkpoint=start)


def _checkpoint(settings: JobSettings) -> Path | None:
    """The file with the weights to start from."""
    if settings.checkpoint and not Path(settings.checkpoint).is_file():
        raise BadSettings(f"there is no checkpoint at {settings.checkpoint}")
    return Path(settings.checkpoint) if settings.checkpoint else None


class Job:
    """One job in its folder; each method is a step and gives where its output is."""

    def __init__(self, settings: JobSettings, *, force: bool = False):
        self.settings = settings
        self.out = Path(settings.out)
        self.log = ClickLog(settings.log)
        self.source = ModelSource(model=settings.model, settings=settings.model_settings)
        self.start = _checkpoint(settings)
        self.records = Records(self.out, force=force)
        self.shards = Shards(tasks=settings.shards, retries=settings.retries)

    def run(self) -> dict[str, Any]:
        """Every step whose inputs have changed; the result is that of the last one."""
        features = self.count()
        original = self.train(features)
        statistics = self.measure(original)
        models = {"original": original}
        if self.settings.compress.tune.epochs:
            models["control"] = self.control(original)
        models["compressed"] = self.compress(original, statistics)
        return self.evaluate(models)

    def count(self) -> Path:
        settings = self.settings
        inputs = {"log": self.log.stamp([TRAIN]), "min_count": settings.min_count}

        def make(place: Path) -> Path:
            work, none = partial(count, self.log), LogCounts.empty(self.log)
            found = shards.total(work, self.log.pieces(TRAIN), self.shards, none)
            remove(place)
            with replacing(place) as fresh:
                Features.from_counts(self.log, found, settings.min_count).save(fresh)
            return place

        return self.records.step("count", "count", inputs, make)

    def train(self, features: Path) -> Path:
        settings, source, start = self.settings, self.source.complete(), self.start
        inputs = {
            "log": self.log.stamp([TRAIN, VALID]),
            "count": self.records.made("count"),
            "model": source.model_dump(),
            "train": asdict(settings.train),
            "checkpoint": sha256(start) if start is not None else None,
            "workers": settings.workers,
        }

        def make(place: Path) -> Path:
            recipe = partial(_train, self.log, features, source, settings.train, place, start)
            return self.trained(recipe, "training")

        return self.records.step("train", "model", inputs, make)

    def measure(self, original: Path) -> Path:
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN]),
            "train": self.records.made("train"),
            "measure_rows": settings.measure_rows,
        }

        def make(place: Path) -> Path:
            pieces = recipes.measure_pieces(self.log)
            work = partial(_measure, self.log, original, recipes.measure_share(pieces, settings))
            measured = recipes.total(shards.in_piece_order(work, pieces, self.shards))
            remove(place)
            with replacing(place) as fresh:
                fresh.mkdir()
                save_file(measured.to_tensors(), fresh / STATISTICS)
            return place

        return self.records.step("measure", "statistics", inputs, make)

    def compress(self, original: Path, statistics: Path) -> Path:
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN, VALID]),
            "measure": self.records.made("measure"),
            "compress": asdict(settings),
            "workers": self.settings.workers,
        }

        def make(place: Path) -> Path:
            recipe = partial(_compress, self.log, original, statistics, settings, place)
            if settings.tune.epochs:
                return self.trained(recipe, "tuning")
            retries = self.settings.retries
            return shards.once(
                partial(_untrained, recipe), num_cpus=cpus_of_each(1), retries=retries
            )

        return self.records.step("compress", "artifact", inputs, make)

    def control(self, original: Path) -> Path:
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN, VALID]),
            "train": self.records.made("train"),
            "tune": asdict(settings.tune),
            "workers": self.settings.workers,
        }

        def make(place: Path) -> Path:
            recipe = partial(_control, self.log, original, settings, place)
            return self.trained(recipe, "control")

        return self.records.step("control", "control", inputs, make)

    def evaluate(self, models: dict[str, Path]) -> dict[str, Any]:
        steps = {"original": "train", "control": "control", "compressed": "compress"}
        inputs = {
            "log": self.log.stamp([TEST]),
            "models": {name: self.records.made(steps[name]) for name in models},
        }

        def make(place: Path) -> Path:
            result = {"split": TEST, "models": self.evaluations(models)}
            with replacing(place) as fresh:
                fresh.write_text(json.dumps(result, indent=1) + "\n")
            return place

        written = self.records.step("evaluate", "evaluation.json", inputs, make)
        found: dict[str, Any] = json.loads(written.read_text())
        return {**found, "seconds": self.records.seconds}

    def evaluations(self, models: dict[str, Path]) -> dict[str, Any]:
        """Quality by shards; then speed, one model after the other with nothing else running."""
        found: dict[str, Any] = {}
        pieces = self.log.pieces(TEST)
        for name, folder in models.items():
            work = partial(_quality, self.log, folder)
            quality = shards.total(work, pieces, self.shards, Quality())
            found[name] = {"path": str(folder), **quality.to_dict()}
        for name, folder in models.items():
            work_once = partial(_size_and_speed, self.log, folder)
            retries = self.settings.retries
            found[name] |= shards.once(work_once, num_cpus=cpus_of_each(1), retries=retries)
        return found

    def trained(self, recipe: Makes, title: str) -> Path:
        settings, storage = self.settings, self.out / ".ray_train"
        return on_workers(recipe, title, storage, count=settings.workers, retries=settings.retries)


def _train(
    log: ClickLog,
    features: Path,
    source: ModelSource,
    settings: TrainSettings,
    out: Path,
    start: Path | None,
    *,
    watch: Watch,
) -> Artifact:
    found = Features.load(features)
    return recipes.train(log, found, source, settings, out, start=start, watch=watch)


def _measure(
    log: ClickLog, original: Path, share: float, pieces: list[Piece]
) -> Iterator[Statistics]:
    opened = Artifact.open(original)
    model = opened.model()
    for piece in pieces:
        yield recipes.measure_piece(opened, model, log, piece, share)


def _compress(
    log: ClickLog,
    original: Path,
    statistics: Path,
    settings: CompressSettings,
    out: Path,
    *,
    watch: Watch,
) -> Artifact:
    opened = Artifact.open(original)
    measured = Statistics.from_tensors(load_file(statistics / STATISTICS))
    held = recipes.held_out(opened, log, settings)
    plan = recipes.plan(opened, measured, settings, held)
    return recipes.compress(opened, log, measured, plan, settings, out, held=held, watch=watch)


def _untrained(recipe: Makes) -> Path:
    return recipe(watch=recipes.quiet).folder


def _control(
    log: ClickLog, original: Path, settings: CompressSettings, out: Path, *, watch: Watch
) -> Artifact:
    return recipes.control(Artifact.open(original), log, settings, out, watch=watch)


def _quality(log: ClickLog, folder: Path, pieces: list[Piece]) -> Quality:
    opened = Artifact.open(folder)
    with fast_tables(opened.model()) as model:
        return evaluate.quality(model, log, opened.features, pieces)


def _size_and_speed(log: ClickLog, folder: Path) -> dict[str, Any]:
    opened = Artifact.open(folder)
    model = opened.model()
    sizes = {**model_bytes(model), "disk": evaluate.disk_bytes(folder)}
    return {
        "bytes": sizes,
        "rows_per_second": evaluate.speed(model, log, opened.features, TEST),
    }
