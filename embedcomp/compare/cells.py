"""What a comparison consists of: one cell a model, seed, epochs, way of compressing and budget."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from embedcomp import methods
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import CompareSettings, CompressSettings
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import FormTrainSettings, TrainSettings

ORIGINAL = "original"  # the trained model
CONTROL = "control"  # the original, trained on labels for the epochs of what it is held against
PLANNED = "planned"  # the planner's mix of all methods that are compared
KEEP = "keep"  # the method that changes nothing
UNLIMITED = "100%"  # the budget of models that are not compressed


@dataclass(frozen=True, kw_only=True, order=True)
class Epochs:
    """Passes over the log that a compressed model gets, and that its control gets on labels.

    train: of its form, all of its numbers together.
    from_log: whether those begin with drawn numbers and learn from labels alone.
    form: names the other settings of that training.
    tune: of tuning, afterwards.
    """

    train: int = 0
    from_log: bool = False
    form: str = ""
    tune: int = 0

    def __bool__(self) -> bool:
        return self.train > 0 or self.tune > 0

    def __str__(self) -> str:
        start = " from the log" if self.from_log else ""
        said = [f"trained for {_epochs(self.train)}{start}"] if self.train else []
        return ", ".join([*said, *([f"tuned for {_epochs(self.tune)}"] if self.tune else [])])

    def to_dict(self) -> dict[str, Any]:
        """As results have them; those without training are named as before there was any."""
        tuned = {"tune_epochs": self.tune}
        if not self.train:
            return tuned
        return {"train_epochs": self.train, "from_log": self.from_log, "form": self.form} | tuned


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result of a comparison."""

    model: str
    seed: int
    method: str  # a method's name (the comparison's `rest` takes the layers that it cannot), or one
    # of the three above
    budget: str = ""  # "": of the original and the control, which keep to none
    epochs: Epochs = Epochs()

    def __str__(self) -> str:
        within = f" at {self.budget}" if self.budget else ""
        trained = f", {self.epochs}" if self.epochs else ""
        return f"{self.model}, seed {self.seed}: {self.method}{within}{trained}"

    def to_dict(self) -> dict[str, Any]:
        """As results have it."""
        own = {name: value for name, value in vars(self).items() if name != "epochs"}
        return own | self.epochs.to_dict()

    @property
    def compressed(self) -> bool:
        return bool(self.budget)


def cells(settings: CompareSettings) -> list[Cell]:
    """Every cell of a comparison, those of one trained model together.

    Raises:
        BadSettings: of the methods named, none can be used without training, and some cells have
            none.
    """
    found = []
    for epochs in every_epochs(settings):
        mix(settings.methods, epochs)  # refuses what would only be found once models are trained
    for model in settings.models:
        for seed in range(settings.seeds):
            found.append(Cell(model=model, seed=seed, method=ORIGINAL))
            for epochs in every_epochs(settings):
                found += _with_epochs(settings, model, seed, epochs)
    return found


def every_epochs(settings: CompareSettings) -> list[Epochs]:
    """Every number of epochs of training with every one of tuning."""
    form = digest(of_forms(settings))
    found = []
    for train in settings.train_epochs:
        one = Epochs(train=train, from_log=settings.from_log, form=form) if train else Epochs()
        found += [replace(one, tune=tune) for tune in settings.tune_epochs]
    return found


def _with_epochs(settings: CompareSettings, model: str, seed: int, epochs: Epochs) -> list[Cell]:
    one = Cell(model=model, seed=seed, method=CONTROL, epochs=epochs)
    found = [one] if epochs else []
    for method in (*alone(settings, epochs), PLANNED):
        found += [replace(one, method=method, budget=budget) for budget in settings.budgets]
    return found


def mix(names: tuple[str, ...], epochs: Epochs) -> tuple[str, ...]:
    """The methods of the planned mix; those that have to be trained only where they are.

    Raises:
        BadSettings: methods are named, but none is left.
    """
    unfit = {KEEP, *_unfit(epochs)}
    if names and unfit.issuperset(names):
        where = "" if epochs.train else " where train_epochs is 0"
        raise BadSettings(
            f"of {', '.join(names)} there is none to plan with{where}; name other methods"
        )
    said = [name for name in names if name not in unfit]
    return tuple(name for name in methods.named(said, epochs.train > 0) if name != KEEP)


def alone(settings: CompareSettings, epochs: Epochs) -> tuple[str, ...]:
    """The methods that are compared one by one; of none named, all that there are."""
    if settings.alone is None:
        return mix(settings.methods or (methods.ALL,), epochs)
    return tuple(name for name in settings.alone if name not in _unfit(epochs))


def _unfit(epochs: Epochs) -> list[str]:
    """Methods that have to be trained, where nothing is."""
    return [] if epochs.train else methods.that_train()


def source(settings: CompareSettings, model: str) -> ModelSource:
    """Where a model comes from, with every setting written out."""
    return ModelSource(model=model, settings=settings.model_settings.get(model, {})).complete()


def setup(log: ClickLog, settings: CompareSettings, model: str) -> dict[str, Any]:
    """All that results depend on but for the cell: two with equal setups belong in one table."""
    return {
        "log": log.fingerprint(),
        "model": source(settings, model).model_dump(),
        "train": _but(settings.train, "seed"),
        "tune": _but(settings.tune, "seed", "epochs"),
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


def of_forms(settings: CompareSettings) -> dict[str, Any]:
    """All that the training of compressed forms depends on but for the cell."""
    return _but(settings.form_train, "seed", "epochs")


def training(settings: CompareSettings, cell: Cell) -> TrainSettings:
    """How the cell's original is trained."""
    return replace(settings.train, seed=cell.seed)


def form_training(settings: CompareSettings, cell: Cell) -> FormTrainSettings:
    """How the cell's compressed form is trained, or its control before it is tuned."""
    return replace(settings.form_train, seed=cell.seed, epochs=cell.epochs.train)


def tuning(settings: CompareSettings, cell: Cell) -> TuneSettings:
    """How the cell is tuned, or its control trained on."""
    return replace(settings.tune, seed=cell.seed, epochs=cell.epochs.tune)


def compressing(settings: CompareSettings, cell: Cell) -> CompressSettings:
    """How the cell's model is compressed."""
    planned = cell.method == PLANNED
    single = (cell.method,) if cell.compressed else ()  # the original and the control have none
    return CompressSettings(
        budget=cell.budget or UNLIMITED,
        methods=mix(settings.methods, cell.epochs) if planned else single,
        rest=() if planned else settings.rest,
        measure_rows=settings.measure_rows,
        held_rows=settings.held_rows,
        solver=settings.solver,
        latency_budget=settings.latency_budget if cell.compressed else "",
        train=form_training(settings, cell),
        from_log=cell.epochs.from_log,
        tune=tuning(settings, cell),
    )


def _but(settings: TrainSettings | TuneSettings, *names: str) -> dict[str, Any]:
    """Settings without those that the cells set."""
    return {name: value for name, value in asdict(settings).items() if name not in names}


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def digest(value: Any) -> str:
    """Names a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
