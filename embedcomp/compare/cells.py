"""What a comparison consists of: one cell a model, seed, way of compressing, budget and tuning."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from embedcomp import methods
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import CompareSettings, CompressSettings
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings

ORIGINAL = "original"  # the trained model
CONTROL = "control"  # the original, trained on for the epochs of tuning
PLANNED = "planned"  # the planner's mix of all methods that are compared
KEEP = "keep"  # the method that changes nothing
UNLIMITED = "100%"  # the budget of models that are not compressed


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result of a comparison."""

    model: str
    seed: int
    method: str  # a method's name (the comparison's `rest` takes the layers that it cannot), or one
    # of the three above
    budget: str = ""  # "": of the original and the control, which keep to none
    tune_epochs: int = 0

    def __str__(self) -> str:
        within = f" at {self.budget}" if self.budget else ""
        tuned = f", tuned for {self.tune_epochs}" if self.tune_epochs else ""
        return f"{self.model}, seed {self.seed}: {self.method}{within}{tuned}"

    @property
    def compressed(self) -> bool:
        return bool(self.budget)


def cells(settings: CompareSettings) -> list[Cell]:
    """Every cell of a comparison, those of one trained model together.

    Raises:
        BadSettings: a budget, a model or a method is none.
    """
    found = []
    for model in settings.models:
        for seed in range(settings.seeds):
            found.append(Cell(model=model, seed=seed, method=ORIGINAL))
            for epochs in settings.tune_epochs:
                found += _of_tuning(settings, model, seed, epochs)
    return found


def _of_tuning(settings: CompareSettings, model: str, seed: int, epochs: int) -> list[Cell]:
    one = {"model": model, "seed": seed, "tune_epochs": epochs}
    found = [Cell(**one, method=CONTROL)] if epochs else []  # type: ignore[arg-type]
    alone = settings.alone
    for method in (*(singles(settings.methods) if alone is None else alone), PLANNED):
        for budget in settings.budgets:
            found.append(Cell(**one, method=method, budget=budget))  # type: ignore[arg-type]
    return found


def mix(names: tuple[str, ...]) -> tuple[str, ...]:
    """The methods of the planned mix."""
    return tuple(name for name in methods.named(names) if name != KEEP)


def singles(names: tuple[str, ...]) -> tuple[str, ...]:
    """The methods of the mix; of none named, all that there are."""
    return mix(names or (methods.ALL,))


def source(settings: CompareSettings, model: str) -> ModelSource:
    """Where a model comes from, with every setting written out."""
    return ModelSource(model=model, settings=settings.model_settings.get(model, {})).complete()


def setup(log: ClickLog, settings: CompareSettings, model: str) -> dict[str, Any]:
    """All that results depend on but for the cell: two with equal setups belong in one table."""
    train, tune = asdict(settings.train), asdict(settings.tune)
    return {
        "log": log.fingerprint(),
        "model": source(settings, model).model_dump(),
        "train": {name: value for name, value in train.items() if name != "seed"},
        "tune": {name: value for name, value in tune.items() if name not in ("seed", "epochs")},
        **{
            name: getattr(settings, name)
            for name in (
                "split",
                "min_count",
                "measure_rows",
                "held_rows",
                "solver",
                "rest",
                "latency_budget",
            )
        },
    }


def training(settings: CompareSettings, cell: Cell) -> TrainSettings:
    """How the cell's original is trained."""
    return replace(settings.train, seed=cell.seed)


def tuning(settings: CompareSettings, cell: Cell) -> TuneSettings:
    """How the cell is tuned, or its control trained on."""
    return replace(settings.tune, seed=cell.seed, epochs=cell.tune_epochs)


def compressing(settings: CompareSettings, cell: Cell) -> CompressSettings:
    """How the cell's model is compressed."""
    planned = cell.method == PLANNED
    alone = (cell.method,) if cell.compressed else ()  # the original and the control have none
    return CompressSettings(
        budget=cell.budget or UNLIMITED,
        methods=mix(settings.methods) if planned else alone,
        rest=() if planned else settings.rest,
        measure_rows=settings.measure_rows,
        held_rows=settings.held_rows,
        solver=settings.solver,
        latency_budget=settings.latency_budget if cell.compressed else "",
        tune=tuning(settings, cell),
    )


def digest(value: Any) -> str:
    """Names a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
