"""Comparisons from end to end, on a log that trains in a second."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedcomp import methods, recipes
from embedcomp.artifact.source import ModelSource
from embedcomp.compare import results
from embedcomp.compare.cells import cells, compressing
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
from embedcomp.train.fit import Watch
from embedcomp.train.settings import TrainSettings

TINY = {"width": 16, "hidden": (16,)}
SETTINGS = CompareSettings(
    models=("deepfm",),
    methods=("half", "row_int8"),
    budgets=("1.8x", "2.8x"),
    tune_epochs=(1,),
    model_settings={"deepfm": TINY},
    train=TrainSettings(epochs=1, batch_rows=1024),
)


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
        ({"tune_epochs": (-1,)}, "0 is not to tune"),
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
