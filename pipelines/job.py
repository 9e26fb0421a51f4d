"""The steps of a compression job: count, train, measure, plan, control, compress, evaluate.

Where a student takes the original's place, it is measured and planned for in the step compress.

out/.counting/        counts that do not fit into memory, while they are added up
out/count/            features: vocabularies and dense scales of the training split
out/model/N/          the trained model
out/statistics/       sums over the log that compression is planned from
out/plan.json         what is done with each layer, and why nothing is with the others
out/control/N/        the original, trained on as the compressed model was tuned
out/artifact/N/       the compressed model
out/evaluation.json   original, control and compressed on the test split
out/.steps/           what each of these was made from

Where `out` is a URL, these are in the folder `work`, and each is copied once its step is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from safetensors.torch import load_file, save_file

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.counts import LogCounts, count
from embedcomp.log.features import Features
from embedcomp.log.kept import KeptCounts
from embedcomp.log.stored import Store
from embedcomp.pipelines import shards
from embedcomp.pipelines.cluster import cpus_of_each, refuse_unshared
from embedcomp.pipelines.published import Published
from embedcomp.pipelines.records import Records, say
from embedcomp.pipelines.settings import TEST, TRAIN, VALID, working_folder
from embedcomp.pipelines.shards import Shards
from embedcomp.pipelines.training import Makes, on_workers
from embedcomp.planning.plan import Plan, render
from embedcomp.recipes import evaluate
from embedcomp.recipes.progress import shown
from embedcomp.recipes.settings import CompressSettings, JobSettings
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.files import remove, replacing, sha256
from embedcomp.support.filesystems import is_url
from embedcomp.support.metrics import Quality
from embedcomp.support.progress import Counter, Doing, Watch
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables

STATISTICS = "statistics.safetensors"

R = TypeVar("R")
T = TypeVar("T")


class Job:
    """One job in its folder; each method is a step and gives where its output is.

    Args:
        settings: that `refuse` finds nothing wrong with.

    Raises:
        BadModel: the model does not have all of its settings.
    """

    def __init__(self, settings: JobSettings, *, force: bool = False):
        self.settings = settings
        self.out = working_folder(settings)
        self.log = ClickLog(settings.log)
        self.source = ModelSource(model=settings.model, settings=settings.model_settings).complete()
        self.start = Path(settings.checkpoint) if settings.checkpoint else None
        url = is_url(settings.out)
        self.published = Published(settings.out, self.out) if url else None
        self.records = Records(self.out, force=force, published=self.published)
        self.shards = Shards(tasks=settings.shards, retries=settings.retries)

    def run(self) -> dict[str, Any]:
        """Every step whose inputs have changed; the result is that of the last one.

        Raises:
            BadSettings: `out` is a URL, and the nodes share no folder to work in.
            CannotPublish: it cannot be written.
        """
        if self.published is not None:
            refuse_unshared(self.settings)
            self.published.fetch()
        features = self.count()
        original = self.train(features)
        models, beside = {"original": original}, None
        compress: Callable[..., Path] = self.student
        if not self.settings.compress.student:
            statistics = self.measure(original)
            planned = self.plan(original, statistics)
            compress = partial(self.compress, statistics=statistics, planned=planned)
        if self.settings.compress.trains:
            models["control"] = beside = self.control(original)
        models["compressed"] = compress(original, control=beside)
        result = self.evaluate(models)
        for name, found in result["models"].items():
            if found.get("needs_code"):
                say(f"{name}: {recipes.ONLY_BY_CODE}: {found['needs_code']}")
        return result

    def count(self) -> Path:
        settings = self.settings
        kept, scratch = self.kept_counts(), self.out / ".counting"
        inputs = {
            "log": self.log.stamp([TRAIN]) if kept is None else kept.stamp(),
            "min_count": settings.min_count,
        }

        def make(place: Path) -> Path:
            remove(scratch)
            with shown() as watch:
                watch(Doing("counting ids"))
                found = self.counted(kept, Store(str(scratch), settings.count_bytes))
                features = Features.from_counts(self.log, found, settings.min_count, self.each)
            remove(place)
            with replacing(place) as fresh:
                features.save(fresh)
            remove(scratch)
            return place

        return self.records.step("count", "count", inputs, make)

    def kept_counts(self) -> KeptCounts | None:
        """Counts of the training split that outlast the job, if they are asked for."""
        settings = self.settings
        if not settings.counts:
            return None
        return KeptCounts(settings.counts, self.log, TRAIN, settings.count_bytes)

    def counted(self, kept: KeptCounts | None, store: Store) -> LogCounts:
        if kept is None:
            work, none = partial(count, self.log, store=store), LogCounts.empty(self.log, store)
            return shards.total(work, self.log.pieces(TRAIN), self.shards, none)
        kept.add(kept.fresh(), self.each, self.shards.of)
        return kept.total(store)

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`work` of each item in a task of its own; of a single one, here."""
        return map(work, items) if len(items) == 1 else shards.each(work, items, self.shards)

    def train(self, features: Path) -> Path:
        settings, source, start = self.settings, self.source, self.start
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
            return self.trained(recipe)

        return self.records.step("train", "model", inputs, make)

    def measure(self, original: Path) -> Path:
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN]),
            "train": self.records.made("train"),
            "measure_rows": settings.measure_rows,
        }

        def make(place: Path) -> Path:
            pieces = recipes.measure_pieces(self.log, settings)
            work = partial(_measure, self.log, original, recipes.measure_share(pieces, settings))
            with shown() as watch:
                counter = Counter(watch, "measuring", len(pieces), "pieces")
                parts = shards.in_piece_order(work, pieces, self.shards)
                measured = recipes.total(counter.over(parts))
            remove(place)
            with replacing(place) as fresh:
                fresh.mkdir()
                save_file(measured.to_tensors(), fresh / STATISTICS)
            return place

        return self.records.step("measure", "statistics", inputs, make)

    def plan(self, original: Path, statistics: Path) -> Path:
        """Made in one place, whatever the number of workers that carry it out, and printed."""
        settings = self.settings.compress
        planning = {name: v for name, v in asdict(settings).items() if name != "tune"}
        inputs = {
            "log": self.log.stamp([VALID]),
            "measure": self.records.made("measure"),
            "compress": planning,
        }

        def make(place: Path) -> Path:
            return self.once(partial(_plan, self.log, original, statistics, settings, place))

        file = self.records.step("plan", "plan.json", inputs, make)
        Console(stderr=True, width=160).print(render(_read_plan(file)))
        return file

    def compress(
        self, original: Path, statistics: Path, planned: Path, control: Path | None = None
    ) -> Path:
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN, VALID]),
            "plan": self.records.made("plan"),
            "control": self.records.made("control") if control is not None else None,
            "compress": asdict(settings),
            "workers": self.settings.workers,
        }

        def make(place: Path) -> Path:
            given = (self.log, original, statistics, planned, control)
            recipe = partial(_compress, *given, settings, place)
            if settings.trains:
                return self.trained(recipe)
            return self.once(partial(_untrained, recipe))

        return self.records.step("compress", "artifact", inputs, make)

    def student(self, original: Path, control: Path | None = None) -> Path:
        """Students trained, planned and compressed, of which the best is the job's artifact."""
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN, VALID]),
            "train": self.records.made("train"),
            "control": self.records.made("control") if control is not None else None,
            "compress": asdict(settings),
            "workers": self.settings.workers,
        }

        def make(place: Path) -> Path:
            return self.trained(partial(_student, self.log, original, control, settings, place))

        return self.records.step("compress", "artifact", inputs, make)

    def control(self, original: Path) -> Path:
        settings = self.settings.compress
        inputs = {
            "log": self.log.stamp([TRAIN, VALID]),
            "train": self.records.made("train"),
            "form": asdict(settings.train),
            "tune": asdict(settings.tune),
            "workers": self.settings.workers,
        }

        def make(place: Path) -> Path:
            recipe = partial(_control, self.log, original, settings, place)
            return self.trained(recipe)

        return self.records.step("control", "control", inputs, make)

    def evaluate(self, models: dict[str, Path]) -> dict[str, Any]:
        steps = {"original": "train", "control": "control", "compressed": "compress"}
        inputs = {
            "log": self.log.stamp([TEST]),
            "models": {name: self.records.made(steps[name]) for name in models},
        }

        def make(place: Path) -> Path:
            with shown() as watch:
                result = {"split": TEST, "models": self.evaluations(models, watch)}
            with replacing(place) as fresh:
                fresh.write_text(json.dumps(result, indent=1) + "\n")
            return place

        written = self.records.step("evaluate", "evaluation.json", inputs, make)
        found: dict[str, Any] = json.loads(written.read_text())
        return {**found, "seconds": self.records.seconds}

    def evaluations(self, models: dict[str, Path], watch: Watch) -> dict[str, Any]:
        """Quality by shards; then speed, one model after the other with nothing else running."""
        found: dict[str, Any] = {}
        pieces = self.log.pieces(TEST)
        for name, folder in models.items():
            watch(Doing("evaluating", note=name))
            work = partial(_quality, self.log, folder)
            scored = shards.total(work, pieces, self.shards, Quality())
            found[name] = {"path": self.records.place(folder), **scored.to_dict()}
        for name, folder in models.items():
            watch(Doing("timing", note=name))
            found[name] |= self.once(partial(_size_and_speed, self.log, folder))
        return found

    def once(self, work: Callable[[], R]) -> R:
        """`work` in one task that has a node's CPUs."""
        return shards.once(work, num_cpus=cpus_of_each(1), retries=self.settings.retries)

    def trained(self, recipe: Makes) -> Path:
        settings, storage = self.settings, self.out / ".ray_train"
        return on_workers(recipe, storage, count=settings.workers, retries=settings.retries)


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


def _plan(
    log: ClickLog, original: Path, statistics: Path, settings: CompressSettings, out: Path
) -> Path:
    opened = Artifact.open(original)
    with shown() as watch:
        held = recipes.held_out(opened, log, settings, watch)
        plan = recipes.plan(opened, _measured(statistics), settings, held, watch)
    with replacing(out) as fresh:
        fresh.write_text(json.dumps(plan.to_dict(), indent=1) + "\n")
    return out


def _read_plan(file: Path) -> Plan:
    return Plan.from_dict(json.loads(file.read_text()))


def _measured(statistics: Path) -> Statistics:
    return Statistics.from_tensors(load_file(statistics / STATISTICS))


def _compress(
    log: ClickLog,
    original: Path,
    statistics: Path,
    planned: Path,
    control: Path | None,
    settings: CompressSettings,
    out: Path,
    *,
    watch: Watch,
) -> Artifact:
    return recipes.compress(
        Artifact.open(original),
        log,
        _measured(statistics),
        _read_plan(planned),
        settings,
        out,
        control=Artifact.open(control) if control is not None else None,
        watch=watch,
    )


def _student(
    log: ClickLog,
    original: Path,
    control: Path | None,
    settings: CompressSettings,
    out: Path,
    *,
    watch: Watch,
) -> Artifact:
    beside = Artifact.open(control) if control is not None else None
    opened = Artifact.open(original)
    return recipes.with_student(opened, log, settings, out, control=beside, watch=watch)


def _untrained(recipe: Makes) -> Path:
    with shown() as watch:
        return recipe(watch=watch).folder


def _control(
    log: ClickLog, original: Path, settings: CompressSettings, out: Path, *, watch: Watch
) -> Artifact:
    return recipes.control(Artifact.open(original), log, settings, out, watch=watch)


def _quality(log: ClickLog, folder: Path, pieces: list[Piece]) -> Quality:
    opened = Artifact.open(folder)
    with fast_tables(opened.model()) as model:
        return quality(model, log, opened.features, pieces)


def _size_and_speed(log: ClickLog, folder: Path) -> dict[str, Any]:
    opened = Artifact.open(folder)
    found = evaluate.size_and_speed(opened.model(), log, opened.features, TEST, opened.folder)
    return {**found, "needs_code": opened.manifest.needs_code}
