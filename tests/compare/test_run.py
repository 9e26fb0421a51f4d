"""Comparisons from end to end, on a log that trains in a second."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedcomp import methods, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.compare import results
from embedcomp.compare.cells import Cell, Epochs, cells, compressing, every_epochs
from embedcomp.compare.original import Original, Silent
from embedcomp.compare.results import Record
from embedcomp.compare.run import _Comparison, compare
from embedcomp.errors import BadLog, BadSettings, LatencyTooSmall
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.log.synth import synth
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompareSettings, CompressSettings
from embedcomp.sensitivity.layer import LinearSpec
from embedcomp.sensitivity.layers import Found
from embedcomp.train.fit import Report, Watch
from embedcomp.train.settings import TrainSettings

pytestmark = pytest.mark.slow  # all share models that take long to make

TINY = {"width": 16, "hidden": (16,)}
SETTINGS = CompareSettings(
    models=("deepfm",),
    methods=("half", "row_int8"),
    budgets=("1.8x", "2.8x"),
    tune_epochs=(1,),
    model_settings={"deepfm": TINY},
    train=TrainSettings(epochs=1, batch_rows=1024),
)

TRAINED = replace(
    SETTINGS,
    methods=("half", "hashed"),
    alone=(),
    budgets=("2.8x",),
    train_epochs=(2,),
    form_train=TrainSettings(batch_rows=256, embedding_l2=100.0),
)
FORM, TUNING, OF_CONTROL = "training the compressed form", "tuning", "training the control"


class Recorder(Silent):
    """Remembers what was begun; stops the run before a cell, as a person would."""

    def __init__(self, stop_at: int = -1):
        self.begun: list[str] = []
        self.done, self.stop_at = 0, stop_at

    def expect(self, steps: int, done: int) -> None:
        self.done = done

    def begin(self, title: str) -> Watch:
        if len(self.begun) == self.stop_at:
            raise KeyboardInterrupt
        self.begun.append(title)
        return recipes.quiet


class Killed(Silent):
    """Remembers the steps of training; ends the run before the last of so many with one name."""

    def __init__(self, name: str = "", after: int = 0):
        self.steps: dict[str, list[tuple[int, int]]] = {}
        self._name, self._after = name, after

    def begin(self, title: str) -> Watch:
        return self._watch

    def _watch(self, state: Any) -> None:
        if isinstance(state, Report) and state.valid is None:
            steps = self.steps.setdefault(state.step, [])
            steps.append((state.epoch, state.rows_done))
            if (state.step, len(steps)) == (self._name, self._after):
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    folder = tmp_path_factory.mktemp("log") / "clicks"
    synth(folder, 3000, seed=2)
    return ClickLog(str(folder))


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedcomp.recipes.evaluate.SPEED_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def out(log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was stopped before its fourth cell and then went on."""
    folder = tmp_path_factory.mktemp("compared")
    first, second = Recorder(stop_at=3), Recorder()
    with pytest.raises(KeyboardInterrupt):
        compare(log, SETTINGS, folder, first)
    assert len(results.read(folder / results.NAME)) == 3
    compare(log, SETTINGS, folder, second)
    assert second.done == 3 and len(second.begun) == 5
    assert not set(first.begun) & set(second.begun)
    return folder


def one(out: Path, method: str, budget: str = "") -> Record:
    records = results.read(out / results.NAME)
    (found,) = (r for r in records if (r.method, r.budget) == (method, budget))
    return found


def test_every_cell_has_a_line_with_what_it_was_made_of(out: Path, log: ClickLog):
    found = one(out, "planned", "2.8x")
    assert found.data["name"] == "clicks" and found.data["rows"]["train"] == 2400
    assert found.data["fingerprint"] == log.fingerprint()
    assert found.settings["methods"] == ["half", "row_int8"]
    assert found.settings["model"]["settings"]["width"] == 16
    assert found.split == "valid" and found.rows == 300 and found.tune_epochs == 1
    assert found.bytes["total"] <= found.budget_bytes
    assert found.bytes["tables"] + found.bytes["dense"] == found.bytes["total"]
    assert set(found.rows_per_second) == {"1", "64", "1024"}
    assert found.machine["cores"] and found.versions["torch"] and found.date and found.plan
    assert set(found.seconds) == {"plan", "compress", "evaluate"} and found.predicted_loss > 0
    assert sum(found.mix.values()) == 8 + 8 + 3  # tables of both widths, and linear layers
    assert 0 < found.auc < 1 and found.calibration > 0


def test_the_control_is_the_original_with_the_tunings_epochs(out: Path):
    original, control = one(out, "original"), one(out, "control")
    assert control.bytes["total"] == original.bytes["total"]
    assert (original.tune_epochs, control.tune_epochs) == (0, 1)
    assert control.logloss != original.logloss


def test_a_method_alone_is_only_mixed_with_keep(out: Path):
    assert set(one(out, "row_int8", "2.8x").mix) <= {"keep", "row_int8"}
    assert set(one(out, "half", "1.8x").mix) <= {"keep", "half"}


def test_a_cell_that_cannot_be_made_says_why(out: Path):
    found = one(out, "half", "2.8x")
    assert "but the smallest plan needs" in found.reason and found.auc is None


def test_a_time_that_no_plan_keeps_to_is_a_reason_too() -> None:
    spec = LinearSpec(name="l", inputs=2, outputs=2, bias=True)

    class Planning:
        found = Found({"l": SimpleNamespace(spec=spec)}, {})

        def plan(self, settings: CompressSettings) -> Plan:
            raise LatencyTooSmall(88.7, 64, 97.5, 35.1)

    original = Original(None, None, None, Planning())
    assert "but the fastest plan found" in original.plan(CompressSettings(budget="5x"))


def test_a_second_run_computes_nothing(out: Path, log: ClickLog):
    before = (out / results.NAME).read_bytes()
    progress = Recorder()
    found = compare(log, SETTINGS, out, progress)
    assert progress.done == 8 and not progress.begun
    assert found == results.read(out / results.NAME)
    assert (out / results.NAME).read_bytes() == before


def test_a_line_that_was_cut_short_is_computed_again_to_the_same_figures(out: Path, log: ClickLog):
    file = out / results.NAME
    *_, last = results.read(file)
    file.write_bytes(file.read_bytes()[:-30])
    progress = Recorder()
    compare(log, SETTINGS, out, progress)
    assert progress.begun == ["deepfm, seed 0: planned at 2.8x, tuned for 1 epoch"]
    *_, again = results.read(file)
    assert (again.key, again.auc, again.plan) == (last.key, last.auc, last.plan)
    assert again.bytes["total"] == last.bytes["total"] and again.auc is not None


def test_other_settings_are_other_results(out: Path, log: ClickLog, tmp_path: Path):
    keys = {}
    for name, changes in {
        "same": {},
        "training": {"train": TrainSettings(epochs=2, batch_rows=1024)},
        "split": {"split": "test"},
        "rows": {"measure_rows": 100},
        "held": {"held_rows": 100},
        "solver": {"solver": "greedy"},
        "methods": {"methods": ("row_int8",)},
    }.items():
        settings = replace(SETTINGS, **changes)
        running = _Comparison(log, settings, tmp_path)
        planned = [c for c in cells(settings) if c.method == "planned" and c.budget == "2.8x"]
        keys[name] = running.key(planned[0])
    assert len(set(keys.values())) == len(keys)
    assert keys["same"] == one(out, "planned", "2.8x").key


def test_a_copied_log_has_the_same_fingerprint_and_another_one_has_not(
    log: ClickLog, tmp_path: Path
):
    shutil.copytree(log.path, tmp_path / "copy")
    synth(tmp_path / "other", 3000, seed=3)
    assert ClickLog(str(tmp_path / "copy")).fingerprint() == log.fingerprint()
    assert ClickLog(str(tmp_path / "other")).fingerprint() != log.fingerprint()


def test_all_methods_but_keep_are_compared_if_none_is_named():
    found = {c.method for c in cells(CompareSettings(models=("dlrm",), budgets=("5x",)))}
    assert found == {"original", "planned", *methods.every()} - {"keep"}


def test_what_a_comparison_and_a_compression_both_have_is_handed_on() -> None:
    """But for what the cells set: the budget, and the methods of one that is alone."""
    given = {"measure_rows": 123, "held_rows": 456, "solver": "highs", "latency_budget": "2x@64"}
    settings = replace(SETTINGS, **given)
    planned = next(cell for cell in cells(settings) if cell.method == "planned")
    made = compressing(settings, planned)
    assert {name: getattr(made, name) for name in given} == given
    both = {f.name for f in fields(CompareSettings)} & {f.name for f in fields(CompressSettings)}
    # `train` is of the originals there, and of the compressed form here; cells without training
    # have no `from_log`
    assert both == {*given, "methods", "rest", "tune", "train", "from_log"}


@pytest.mark.parametrize(
    ("named", "mix"), [((), methods.names()), (("all",), methods.every()), (("svd",), ["svd"])]
)
def test_the_mix_is_of_the_methods_that_pay_unless_others_are_named(
    named: tuple[str, ...], mix: list[str]
) -> None:
    settings = CompareSettings(models=("dlrm",), budgets=("5x",), methods=named)
    planned = next(cell for cell in cells(settings) if cell.method == "planned")
    assert set(compressing(settings, planned).methods) == set(mix) - {"keep"}


def test_only_a_method_alone_leaves_layers_to_the_rest():
    found = {c.method: compressing(SETTINGS, c) for c in cells(SETTINGS) if c.compressed}
    assert found["half"].methods == ("half",) and found["half"].rest == SETTINGS.rest
    assert found["planned"].methods == SETTINGS.methods and not found["planned"].rest


@pytest.mark.parametrize("alone", [(), ("half",)])
def test_few_methods_may_be_compared_alone_with_the_mix_of_all(alone):
    settings = replace(SETTINGS, alone=alone)
    compressed = [cell for cell in cells(settings) if cell.compressed]
    assert {cell.method for cell in compressed} == {*alone, "planned"}
    mixes = [compressing(settings, cell) for cell in compressed if cell.method == "planned"]
    assert {mix.methods for mix in mixes} == {SETTINGS.methods}


def named(settings: CompareSettings) -> dict[Epochs, list[str]]:
    """Methods of the compressed cells and the control, by their epochs."""
    found: dict[Epochs, list[str]] = {epochs: [] for epochs in every_epochs(settings)}
    for cell in cells(settings):
        if cell.method != "original":
            found[cell.epochs].append(cell.method)
    return found


def test_every_epochs_have_their_control_and_trained_methods_only_where_there_is_training() -> None:
    settings = replace(TRAINED, train_epochs=(0, 2), tune_epochs=(0, 1), alone=None)
    (form,) = {epochs.form for epochs in every_epochs(settings) if epochs.train}
    assert named(settings) == {
        Epochs(): ["half", "planned"],
        Epochs(tune=1): ["control", "half", "planned"],
        Epochs(train=2, form=form): ["control", "half", "hashed", "planned"],
        Epochs(train=2, form=form, tune=1): ["control", "half", "hashed", "planned"],
    }
    mixes = {c.epochs.train: compressing(settings, c) for c in cells(settings) if c.compressed}
    assert {n: made.methods for n, made in mixes.items()} == {0: ("half",), 2: settings.methods}
    assert mixes[2].train == replace(settings.form_train, epochs=2) and not mixes[0].train.epochs
    assert named(replace(settings, alone=("hashed",)))[Epochs()] == ["planned"]


def test_where_no_method_is_named_those_that_train_are_compared_with_training() -> None:
    every = replace(TRAINED, train_epochs=(0, 1), methods=(), alone=None)
    untrained, trained = map(set, named(replace(every, tune_epochs=(0,))).values())
    assert trained - untrained == {"control", *methods.that_train()}


def test_forms_begin_with_drawn_numbers_only_where_they_are_trained() -> None:
    settings = replace(TRAINED, train_epochs=(0, 2), from_log=True)
    assert {(e.train, e.from_log) for e in every_epochs(settings)} == {(0, False), (2, True)}
    made = {c.epochs.train: compressing(settings, c) for c in cells(settings) if c.compressed}
    assert made[2].from_log and not made[0].from_log


def test_results_without_training_are_named_as_before_there_was_any(
    log: ClickLog, tmp_path: Path
) -> None:
    cell = Cell(model="deepfm", seed=1, method="svd", budget="5x", epochs=Epochs(tune=2))
    assert cell.to_dict() == {
        "model": "deepfm",
        "seed": 1,
        "method": "svd",
        "budget": "5x",
        "tune_epochs": 2,
    }
    anew = replace(TRAINED.form_train, learning_rate=0.1)
    other = replace(TRAINED, train_epochs=(0, 2), form_train=anew)
    keys = [
        {_Comparison(log, s, tmp_path).key(c): c.epochs.train for c in cells(s)}
        for s in (other, replace(TRAINED, train_epochs=(0, 2)))
    ]
    assert {keys[0][key] for key in keys[0].keys() & keys[1].keys()} == {0}
    assert {keys[0][key] for key in keys[0].keys() - keys[1].keys()} == {2}


@pytest.fixture(scope="module")
def trained(log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Killed]:
    """A comparison of forms that are trained and tuned, and what it reported."""
    folder, progress = tmp_path_factory.mktemp("trained"), Killed()
    compare(log, TRAINED, folder, progress)
    return folder, progress


def test_a_trained_form_is_a_line_with_how_it_was_trained(trained: tuple[Path, Killed]) -> None:
    folder, _ = trained
    records = results.read(folder / results.NAME)
    assert [r.method for r in records] == ["original", "control", "planned"]
    assert [(r.train_epochs, r.tune_epochs) for r in records] == [(0, 0), (2, 1), (2, 1)]
    original, control, planned = records
    assert "hashed" in planned.mix and planned.bytes["total"] <= planned.budget_bytes
    assert planned.settings["form_train"]["batch_rows"] == 256 and planned.form
    assert control.epochs == planned.epochs and "form_train" not in original.settings


def test_the_control_takes_the_steps_of_the_form_and_of_its_tuning(
    trained: tuple[Path, Killed],
) -> None:
    folder, progress = trained
    steps = progress.steps
    assert {epoch for epoch, _ in steps[FORM]} == {0, 1}
    assert steps[OF_CONTROL] == steps[FORM] + steps[TUNING]
    (path,) = folder.glob("models/*/0/control-*")
    told = Artifact.open(path).origin.training["settings"]
    assert (told["train"]["epochs"], told["train"]["batch_rows"]) == (2, 256)
    assert told["tune"]["epochs"] == 1


def test_a_comparison_that_is_killed_while_it_trains_ends_with_the_same_figures(
    log: ClickLog, trained: tuple[Path, Killed], tmp_path: Path
) -> None:
    steps = len(trained[1].steps[FORM])
    for name in (OF_CONTROL, FORM):
        with pytest.raises(KeyboardInterrupt):
            compare(log, TRAINED, tmp_path, Killed(name, steps - 1))
    last = Killed()
    again = compare(log, TRAINED, tmp_path, last)
    assert OF_CONTROL not in last.steps and 0 < len(last.steps[FORM]) < steps
    whole = results.read(trained[0] / results.NAME)
    assert [(r.key, r.auc, r.logloss, r.bytes["total"], r.plan) for r in again] == [
        (r.key, r.auc, r.logloss, r.bytes["total"], r.plan) for r in whole
    ]


def test_forms_from_the_log_have_the_same_control(
    log: ClickLog, trained: tuple[Path, Killed]
) -> None:
    folder, progress = trained[0], Killed()
    from_log = replace(TRAINED, from_log=True)
    found = compare(log, from_log, folder, progress)
    before = compare(log, TRAINED, folder, Recorder(stop_at=0))
    assert OF_CONTROL not in progress.steps and found[0] == before[0]
    assert (found[1].auc, found[1].from_log) == (before[1].auc, True)
    mixes = [one[2].mix for one in (found, before)]  # of plans that short runs chose
    assert mixes[0] is not None and mixes[1] is not None
    assert mixes[0]["hashed"] == mixes[1]["hashed"] and found[2].auc != before[2].auc


@pytest.mark.parametrize("named", ["hashed", "hashed,keep"])
def test_methods_that_leave_nothing_to_plan_with_are_refused(named: str) -> None:
    settings = replace(TRAINED, methods=tuple(named.split(",")), train_epochs=(0, 2))
    with pytest.raises(BadSettings, match="none to plan with where train_epochs is 0"):
        cells(settings)
    assert cells(replace(settings, train_epochs=(2,)))


def test_a_method_that_takes_no_layer_says_so(
    log: ClickLog, synth_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = ModelSource(model="deepfm", settings=TINY).complete()
    made = recipes.train(log, synth_features, source, TrainSettings(epochs=0), tmp_path / "m")
    settings = CompressSettings(budget="2x", methods=("svd",), measure_rows=500)
    original = Original.measure(made, log, settings)
    monkeypatch.setattr(methods.get("svd"), "candidates", lambda spec: [])
    told = original.plan(settings)
    assert told == f"svd takes none of the model's {len(original.planning.found.layers)} layers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "no models to compare"),
        ({"budgets": ()}, "no budgets to compare"),
        ({"seeds": 0}, "needs at least 1"),
        ({"tune_epochs": (-1,)}, "tune_epochs holds -1; 0 is not to tune"),
        ({"train_epochs": (-1,)}, "train_epochs holds -1; 0 is not to train"),
        ({"train_epochs": ()}, "no train_epochs to compare"),
        ({"methods": ("hashed",)}, "give --train-epochs too"),
        ({"from_log": True}, "give --train-epochs as well"),
        (
            {"from_log": True, "train_epochs": (1,), "form_train": TrainSettings(distil=0.5)},
            "of which nothing is learnt with from_log",
        ),
        ({"model_settings": {"dlrm": {}}}, "'dlrm', which is not compared"),
    ],
)
def test_settings_that_compare_nothing_are_refused(changes, message):
    with pytest.raises(BadSettings, match=message):
        CompareSettings(**{"models": ("deepfm",), "budgets": ("5x",), **changes})


def test_a_log_without_the_split_is_refused_before_anything_is_done(log: ClickLog, tmp_path: Path):
    with pytest.raises(BadLog, match="no split 'later'"):
        compare(log, replace(SETTINGS, split="later"), tmp_path / "o")
    assert not (tmp_path / "o").exists()
