"""Every setting of a compression job: the keys of JOB.toml and of `--set` are these fields."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from embedcomp import models
from embedcomp.errors import BadSettings
from embedcomp.log.schema import first_problem
from embedcomp.planning.goal import Goal
from embedcomp.support.fields import refuse_below
from embedcomp.support.filesystems import is_url
from embedcomp.support.sizes import in_bytes
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import FormTrainSettings, TrainSettings

S = TypeVar("S")

AUTO = "auto"  # a student of a shape that is found

BESIDE_ONE = ("low_rank",)  # for the layers that a method compared by itself cannot take: many take
# only tables, or only linear layers, and could not reach a budget alone


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """How a model is compressed."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    budget: str = ""  # of the whole served model: "5x" smaller, "20%" of it, or bytes as "4MiB"
    budget_of: Literal["served", "disk"] = "served"  # what the budget is for: the tensors that are
    # served, or all files of the artifact, vocabularies among them
    max_auc_loss: float | None = None  # instead of a budget: the smallest model found whose AUC on
    # the validation split is measured to be lower by at most this, its error taken in
    latency_budget: str = ""  # beside a budget or instead of one: predicted time of a call on one
    # thread and its rows, "200us@64", or "2x@64" for half the original's; a bag of several ids is
    # taken to hold three
    cost_model: str = ""  # file of `embedcomp calibrate` from the machine that serves; empty: this
    # machine's, which is calibrated when it is first needed
    methods: tuple[str, ...] = ()  # methods that the plan may use; empty: those that pay, "all":
    # baselines too
    rest: tuple[str, ...] = ()  # methods for the layers that none of those takes
    measure_rows: int = 65_536  # rows of the training split that statistics are gathered on
    held_rows: int = 262_144  # rows of the validation split that compressed models are compared on
    solver: str = "exact"  # of the plan: exact, highs, greedy, or the baselines welore and farms
    train: FormTrainSettings = field(default_factory=FormTrainSettings)  # of the compressed form,
    # all of its numbers together; with epochs, methods that need it may be used
    plans_tried: int | None = None  # at most, where the form is trained and offered methods are of
    # several kinds: short runs, as long as that training together, choose among the best mix, the
    # methods that need no training, and plans by one method that trains each; 1: the best mix
    # alone; None: 6, or from the log, where predicted losses tell nothing of them, all
    trial_epochs: float | None = None  # of all those short runs together; None: as many as the
    # training has
    from_log: bool = False  # train the compressed form from the log alone: it begins with drawn
    # numbers and learns from labels, not from the model
    student: str = ""  # a smaller network in the original's place, trained on labels and the
    # original's scores: settings as "hidden=64,32,cross_layers=1", or "auto" to try some; empty:
    # the original itself
    student_train: TrainSettings = field(default_factory=TrainSettings)  # of the student
    tune: TuneSettings = field(default_factory=TuneSettings)

    def __post_init__(self) -> None:
        goal = self.goal  # refuses what cannot be read
        refuse_below(self, plans_tried=1, trial_epochs=0)
        read_student(self.student)
        if self.student and (goal.bytes is None or self.budget_of != "served"):
            raise BadSettings("a student is compressed to a budget of what is served; give that")
        if self.from_log and not self.train.epochs:
            raise BadSettings("from_log is for a form that is trained; give --train-epochs as well")
        if self.from_log and self.train.distil is not None:
            raise BadSettings(
                "distil is the weight of the original's scores, of which nothing is learnt "
                "with from_log; give one of the two"
            )
        if self.from_log and self.max_auc_loss is not None:
            raise BadSettings(
                "max_auc_loss is held on the model's own numbers, and from_log draws others; give "
                "a budget"
            )
        if self.budget_of == "disk" and goal.bytes is None:
            raise BadSettings("budget_of is for a budget; give that as well")
        if self.cost_model and goal.latency is None:
            raise BadSettings("cost_model is for a latency_budget; give that as well")

    def refuse_student(self, asked: str) -> None:
        """Raise BadSettings where what was asked for makes no student."""
        if self.student:
            raise BadSettings(
                f"student is for `embedcomp compress`, and {asked} makes none; train one with "
                "`embedcomp train --teacher` and compress that"
            )

    @property
    def trains(self) -> bool:
        """Whether the compressed model is trained, in full or for a few epochs of tuning."""
        return self.train.epochs > 0 or self.tune.epochs > 0

    @property
    def goal(self) -> Goal:
        """What a plan is asked for."""
        return Goal.parse(
            self.budget,
            self.latency_budget,
            self.max_auc_loss,
            methods=self.methods,
            rest=self.rest,
            solver=self.solver,
            training=self.train.epochs > 0,
        )


@dataclass(frozen=True, kw_only=True)
class CountSettings:
    """How the ids of a log are counted."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    counts: str = ""  # folder or URL in which counts of the log's files are kept, so that only new
    # files are counted; empty: all are, each time
    count_memory: str = "1GiB"  # of each process that counts ids; what does not fit waits on disk

    def __post_init__(self) -> None:
        in_bytes("count_memory", self.count_memory)  # refuses what cannot be read

    @property
    def count_bytes(self) -> int:
        return in_bytes("count_memory", self.count_memory)


@dataclass(frozen=True, kw_only=True)
class JobSettings(CountSettings):
    """A whole job: a log goes in, an evaluated artifact comes out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    log: str  # folder or URL of the click log
    out: str  # folder for the job's steps, the model and the artifact, on storage that all nodes
    # share; or a URL, to which what each step made is copied
    work: str = ""  # folder that all nodes share, in which steps are made where out is a URL;
    # empty: one of this machine, which does for a single node
    model: str = "dcnv2"  # a model of embedcomp, or package.module:factory
    model_settings: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""  # weights to start from; with train.epochs = 0 they are compressed as is
    min_count: int = 2  # ids seen fewer times share one row
    train: TrainSettings = field(default_factory=TrainSettings)
    compress: CompressSettings
    shards: int = 0  # parallel tasks of the counting, measuring and evaluating steps; 0: one a CPU
    workers: int = 1  # of the training step
    retries: int = 3  # of a worker that dies

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_count < 1:
            raise BadSettings(f"min_count is {self.min_count}, but an id is seen at least once")
        if self.work and (is_url(self.work) or not is_url(self.out)):
            raise BadSettings(
                f"work is {self.work}, but is for a folder to work in where out is a URL, which is "
                f"{self.out}; omit it, or give a URL and a folder"
            )
        if self.workers < 1:
            raise BadSettings(f"workers is {self.workers}, but training needs at least 1")
        models.refuse_unknown([self.model])


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What is compared on a click log, and how the models are trained, compressed and tuned."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    models: tuple[str, ...] = ()  # of embedcomp, or package.module:factory
    budgets: tuple[str, ...] = ("5x",)  # of the whole served model: 5x, 20% or 4MiB
    methods: tuple[str, ...] = ()  # of the planned mix; empty: those that pay, "all": baselines too
    alone: tuple[str, ...] | None = None  # methods also compared one by one; not given: all of
    # the mix, and all there are where the mix is not named
    seeds: int = 1  # how many, from 0 on
    train_epochs: tuple[int, ...] = (0,)  # of the compressed form, all of its numbers together;
    # methods that need it are compared where there are some; each number has a control of its own
    from_log: bool = False  # train compressed forms from the log alone, as in CompressSettings
    tune_epochs: tuple[int, ...] = (0,)  # of tuning; each number has a control of its own
    split: str = "valid"  # that is scored; test, once nothing is chosen by the results any more
    model_settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by model
    min_count: int = 2  # ids seen fewer times share one row
    rest: tuple[str, ...] = BESIDE_ONE  # for the layers that a method cannot take
    measure_rows: int = 65_536  # rows of the training split that statistics are gathered on
    held_rows: int = 262_144  # rows of the validation split that compressed models are compared on
    solver: str = "exact"  # of the plans, as in CompressSettings
    latency_budget: str = ""  # of every plan beside its bytes, as in CompressSettings
    train: TrainSettings = field(default_factory=TrainSettings)  # the seed is the comparison's
    form_train: FormTrainSettings = field(default_factory=FormTrainSettings)  # of compressed forms;
    # the seed and the epochs are the comparison's
    tune: TuneSettings = field(default_factory=TuneSettings)  # so are the seed and the epochs

    def __post_init__(self) -> None:
        for name in ("models", "budgets", "train_epochs", "tune_epochs"):
            if not getattr(self, name):
                raise BadSettings(f"there are no {name} to compare; name at least one")
        if self.seeds < 1:
            raise BadSettings(f"seeds is {self.seeds}, but a comparison needs at least 1")
        for how, epochs in {"train": self.train_epochs, "tune": self.tune_epochs}.items():
            if min(epochs) < 0:
                raise BadSettings(f"{how}_epochs holds {min(epochs)}; 0 is not to {how}")
        other = sorted(set(self.model_settings) - set(self.models))
        if other:
            raise BadSettings(f"model_settings are for {other[0]!r}, which is not compared")
        models.refuse_unknown(self.models)
        for budget in self.budgets:
            for names in (self.methods, self.alone or ()):
                CompressSettings(  # refuses what cannot be read, or does not go together
                    budget=budget,
                    latency_budget=self.latency_budget,
                    methods=names,
                    rest=self.rest,
                    solver=self.solver,
                    train=replace(self.form_train, epochs=max(self.train_epochs)),
                    from_log=self.from_log,
                )


def read_job(file: Path, changes: Sequence[str] = ()) -> JobSettings:
    """The job in a TOML file, with `changes` such as "train.epochs=3" applied.

    Raises:
        BadSettings: the file cannot be read, or a key or value is not one of JobSettings'.
    """
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"{file} is not a readable job file: {error}") from error
    return validated(JobSettings, read_changes(changes, values), str(file))


def changed(settings: S, changes: Sequence[str]) -> S:
    """`settings` with changes such as "learning_rate=0.01" or "tune.epochs=2" applied."""
    assert dataclasses.is_dataclass(settings) and not isinstance(settings, type)
    values = dataclasses.asdict(settings)
    return validated(type(settings), read_changes(changes, values), "--set")


def read_changes(changes: Sequence[str], values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`values` with changes such as "width=32" or "tune.epochs=2" applied."""
    result = _copied(values or {})
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise BadSettings(f"--set {change}: write it as name=value")
        *path, last = key.strip().split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise BadSettings(f"--set {change}: {part} is {place!r}, which has no {last}")
        place[last] = _value(text.strip())
    return result


def validated(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Plain values as the dataclass `kind`; `where` names their origin in errors."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise BadSettings(f"{where}: {first_problem(error, kind)}") from error


def read_student(said: str) -> dict[str, Any]:
    """Settings of a student, as "hidden=64,32,cross_layers=1"; none for "" and "auto".

    Raises:
        BadSettings: it is not written so.
    """
    found: dict[str, list[Any]] = {}
    if said in ("", AUTO):
        return {}
    for part in said.split(","):
        name, equals, text = part.rpartition("=")
        if equals:
            found[name.strip()] = []
        if not found or not text.strip():
            raise BadSettings(
                f"the student {said!r} is not {AUTO!r} or settings of its model, as "
                "hidden=64,32,cross_layers=1"
            )
        found[[*found][-1]].append(_value(text.strip()))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _value(text: str) -> Any:
    """A TOML value; what is not one is a string, so that quotes may be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
