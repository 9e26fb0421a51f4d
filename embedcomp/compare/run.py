"""Running a comparison: what its file of results does not hold yet."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare import results
from embedcomp.compare.cells import (
    CONTROL,
    ORIGINAL,
    PLANNED,
    Cell,
    cells,
    compressing,
    digest,
    of_forms,
    setup,
    source,
    training,
)
from embedcomp.compare.original import Clock, Original, Progress, Silent, score
from embedcomp.compare.provenance import provenance
from embedcomp.compare.results import Record
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.log.kept import counted
from embedcomp.recipes.settings import CompareSettings, CountSettings
from embedcomp.support.files import remove
from embedcomp.support.progress import Doing, Watch


def compare(
    log: ClickLog, settings: CompareSettings, out: Path, progress: Progress | None = None
) -> list[Record]:
    """Every result of a comparison; those that `out` holds already are not computed again.

    A result is added to the file as soon as it is there, so that a run that is killed loses the
    cell it is at. Originals and controls are kept in `out`, compressed models are not. Nothing but
    the scoring of a cell reads `settings.split`.

    Raises:
        BadSettings: a model, method or budget is none.
        BadLog: the log has no such split.
        BadResults: the file holds a line that is not a result.
    """
    progress = Silent() if progress is None else progress
    wanted = cells(settings)
    log.pieces(settings.split)
    running = _Comparison(log, settings, out)
    known = {record.key: record for record in results.read(running.file)}
    missing = [cell for cell in wanted if running.key(cell) not in known]
    progress.expect(len(wanted), len(wanted) - len(missing))
    for cell in missing:
        record = running.run(cell, progress.begin(str(cell)))
        results.append(running.file, record)
        known[record.key] = record
        progress.end(f"{cell}: {record}")
    return [known[running.key(cell)] for cell in wanted]


class _Comparison:
    """A comparison and the one trained model that it is at."""

    def __init__(self, log: ClickLog, settings: CompareSettings, out: Path):
        self.log, self.settings, self.out = log, settings, out
        self.file, self.scratch = out / results.NAME, out / ".scratch"
        self._setups = {model: setup(log, settings, model) for model in settings.models}
        self._trained: Trained | None = None

    def key(self, cell: Cell) -> str:
        """Names the cell and all that its result depends on."""
        among = compressing(self.settings, cell).methods if cell.method == PLANNED else ()
        return digest([self._setups[cell.model], cell.to_dict(), among])

    def run(self, cell: Cell, watch: Watch) -> Record:
        if self._trained is None or not self._trained.fits(cell):
            self._trained = Trained(self.log, self.settings, cell, self.out / "models")
        make = self._compressed if cell.compressed else self._whole
        return Record(
            key=self.key(cell),
            setup=digest(self._setups[cell.model]),
            data=self._data,
            **cell.to_dict(),
            split=self.settings.split,
            **make(self._trained, cell, watch),
            settings=self._told(cell),
            **provenance(),
        )

    def _compressed(self, trained: Trained, cell: Cell, watch: Watch) -> dict[str, Any]:
        original = trained.measured(watch)
        settings, scratch = compressing(self.settings, cell), self.scratch / self.key(cell)
        figures = original.passing(settings, scratch, self.settings.split, watch)
        remove(scratch)
        return figures

    def _whole(self, trained: Trained, cell: Cell, watch: Watch) -> dict[str, Any]:
        clock = Clock()
        make = trained.original if cell.method == ORIGINAL else trained.control
        artifact = clock.time("train", lambda: make(cell, watch))
        split = self.settings.split
        watch(Doing("evaluating"))
        figures = clock.time("evaluate", lambda: score(artifact, self.log, split))
        return {**figures, "seconds": clock.seconds}

    @cached_property
    def _data(self) -> dict[str, Any]:
        return {
            "name": Path(self.log.path).name,
            "rows": {split: self.log.rows(split) for split in self.log.schema.splits},
            "fingerprint": self.log.fingerprint(),
        }

    def _told(self, cell: Cell) -> dict[str, Any]:
        """The settings behind a result."""
        settings = dict(self._setups[cell.model])
        del settings["log"]
        if cell.epochs.train:
            settings["form_train"] = of_forms(self.settings)
        if cell.compressed:
            settings["methods"] = compressing(self.settings, cell).methods
        return settings


class Trained:
    """One trained model and its controls; each is made on first use unless it is there already.

    Args:
        folder: of all trained models; a model's own is named by what its training depends on.
    """

    def __init__(self, log: ClickLog, settings: CompareSettings, cell: Cell, folder: Path):
        self.log, self.settings, self.cell = log, settings, cell
        shown = cell.model.replace(":", "-")
        depends = [setup(log, settings, cell.model)[n] for n in ("log", "model", "train")]
        name = f"{shown}-{digest([*depends, settings.min_count])}"
        self.folder = folder / name / str(cell.seed)
        self._measured: Original | None = None

    def fits(self, cell: Cell) -> bool:
        return (cell.model, cell.seed) == (self.cell.model, self.cell.seed)

    def original(self, cell: Cell, watch: Watch) -> Artifact:
        out = self.folder / ORIGINAL
        found = _opened(out)
        if found is not None:
            return found
        watch(Doing("counting ids"))
        with counted(self.log, "train", CountSettings().count_bytes) as counts:
            features = Features.from_counts(self.log, counts, self.settings.min_count)
        model, how = source(self.settings, cell.model), training(self.settings, cell)
        return recipes.train(self.log, features, model, how, out, watch=watch)

    def control(self, cell: Cell, watch: Watch) -> Artifact:
        settings = compressing(self.settings, cell)
        how = [asdict(epochs) for epochs in (settings.train, settings.tune) if epochs.epochs]
        out = self.folder / f"{CONTROL}-{digest(how)}"
        found, original = _opened(out), self.original(cell, watch)
        if found is not None:
            return found
        return recipes.control(original, self.log, settings, out, watch=watch)

    def measured(self, watch: Watch) -> Original:
        """The original with its statistics and what its plans share."""
        if self._measured is None:
            settings = compressing(self.settings, self.cell)
            original = self.original(self.cell, watch)
            self._measured = Original.measure(original, self.log, settings, watch)
        return self._measured


def _opened(out: Path) -> Artifact | None:
    """The artifact that is there, if one is."""
    return Artifact.open(out) if (out / "1").is_dir() else None
