"""What benchmarks of one model on one click log share: their options, the model, their record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import result
from benchmarks.script import WORK, open_log, parser
from benchmarks.steps import Steps
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact, versions
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.recipes.progress import shown
from embedcomp.recipes.settings import read_changes, validated
from embedcomp.sensitivity.statistics import score_batch
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train.settings import TrainSettings

EVERY_ROW = 10**9


def options(
    text: str | None, *, log: str = "movielens_1m", models: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser that describes itself by `text`, with the options that `OneModel` reads.

    Args:
        models: several that are taken one after the other, where none are named.
    """
    made = parser(text)
    made.add_argument("--log", default=log, help="its folder's name")
    if models:
        made.add_argument("--models", dest="model", nargs="+", default=list(models))
    else:
        made.add_argument("--model", default="dcnv2", help="of embedcomp")
    made.add_argument("--min-count", type=int, default=2, help="ids seen fewer times share a row")
    made.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    made.add_argument(
        "--trained",
        type=Path,
        help='folder of an original that is there; "{seed}" in it is each seed',
    )
    made.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return made


@dataclass(frozen=True)
class OneModel:
    """A model that is trained on a log, unless it is there, and what is measured of it.

    name: of the benchmark.
    given: by `options`.
    more: settings of the benchmark beside those of the model.
    """

    name: str
    given: argparse.Namespace
    more: Mapping[str, Any]

    @cached_property
    def log(self) -> ClickLog:
        return open_log(self.given.data, self.given.log)

    @property
    def folder(self) -> Path:
        """Where what is done is kept."""
        folder: Path = self.given.work / f"{self.name}-{self.given.log}"
        return folder

    @property
    def settings(self) -> dict[str, Any]:
        told = self.given
        model = {"model": told.model, "min_count": told.min_count, "train": told.set}
        return {**model, **self.more}

    @cached_property
    def steps(self) -> Steps:
        return Steps(self.folder, self.settings)

    @cached_property
    def features(self) -> Features:
        found = count(self.log, self.log.pieces("train"))
        return Features.from_counts(self.log, found, self.given.min_count)

    @cached_property
    def artifact(self) -> Artifact:
        """The original, trained with default settings unless it is there already."""
        return self.trained(self.given.trained or self.folder / "model")

    def of_seed(self, seed: int) -> Artifact:
        """The original that begins with this seed; --trained names it with "{seed}" in its path."""
        told = self.given.trained
        known = None if told is None else Path(str(told).format(seed=seed))
        return self.trained(known or self.folder / f"model-{seed}", seed=seed)

    def trained(
        self,
        folder: Path,
        source: ModelSource | None = None,
        teacher: Artifact | None = None,
        **changes: Any,
    ) -> Artifact:
        """A model, trained unless it is there already.

        Args:
            source: of the model; None: the one that is asked for.
            changes: of the trainer's settings.
        """
        if versions(folder):
            return Artifact.open(folder)
        settings = validated(TrainSettings, read_changes(self.given.set), "--set")
        if source is None:
            source = ModelSource(model=self.given.model, settings={}).complete()
        with shown("training") as watch:
            return recipes.train(
                self.log,
                self.features if teacher is None else teacher.features,
                source,
                replace(settings, **changes),
                folder,
                teacher=teacher,
                watch=watch,
            )

    def test_rows(self) -> HeldOut:
        """All rows of the test split."""
        rows = recipes.rows_of(self.artifact, self.log, "test", EVERY_ROW)
        pairs = ((batch, batch.labels) for batch in rows)
        return HeldOut.of(self.artifact.model(), pairs, score_batch, "test")

    def record(self, results: Any, seeds: Sequence[int] = (0,)) -> Path:
        """Write the record of a run."""
        rows = {split: self.log.rows(split) for split in self.log.schema.splits}
        return result.write(
            f"{self.name}-{self.given.log}",
            data={"name": self.given.log, "rows": rows},
            settings=self.settings,
            seeds=list(seeds),
            results=results,
            folder=self.given.results,
        )
