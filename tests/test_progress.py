"""Long work says how far it is, and what is shown of it keeps coming."""

from __future__ import annotations

import io
from pathlib import Path
from threading import Event

import pytest
import torch
from rich.console import Console

import embedcomp
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.planning import aside
from embedcomp.planning.choices import every
from embedcomp.recipes import compress, held_out, measure, plan, progress, train
from embedcomp.recipes.progress import Counted, Display
from embedcomp.recipes.settings import CompressSettings
from embedcomp.support.progress import Counter, Doing, State, quiet
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings
from tests import small
from tests.cases import B, dlrm


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress, "_print", lines.append)
    return lines


def test_a_line_says_how_far_a_step_is_how_fast_and_since_when():
    clock = Clock()
    display = Display("kuairand", clock=clock)
    display(Doing("measuring", 100, 99_000, "rows"))
    clock.seconds = 4.0
    display(Doing("measuring", 50_100, 99_000, "rows", note="part 2"))
    assert (
        display.line() == "kuairand: measuring: 50,100 of 99,000 rows, part 2, 12,500 rows/s, 4 s"
    )
    clock.seconds = 2004.0
    assert display.line().endswith("part 2, 25 rows/s, 2,004 s"), "a step that hangs is seen to"


def test_time_and_speed_are_those_of_the_step():
    clock = Clock()
    display = Display(clock=clock)
    display(Doing("measuring", 0, 900, "rows"))
    clock.seconds = 60.0
    display(Doing("planning", 0, 8, "candidates", note="tables.item: 0 of 8"))
    clock.seconds = 62.0
    assert display.line() == "planning: 0 of 8 candidates, tables.item: 0 of 8, 2 s"


def test_ticks_print_the_last_state_however_long_nothing_new_is_said(printed: list[str]):
    clock = Clock()
    display = Display(clock=clock)
    display.tick()
    assert not printed, "there is nothing to say yet"
    display(Doing("searching the best plan"))
    for seconds in (5.0, 1800.0):
        clock.seconds = seconds
        display.tick()
    assert printed == ["searching the best plan: 5 s", "searching the best plan: 1,800 s"]


def test_a_result_stays_as_a_line(printed: list[str]):
    Display()(Doing("tuning", 9, 9, "rows", result="epoch 0, AUC 0.71"))
    assert printed == ["tuning: epoch 0, AUC 0.71"]


def test_many_pieces_of_work_are_counted_and_their_results_stay_in_the_line(printed: list[str]):
    clock = Clock()
    display = Display(clock=clock)
    counted = Counted(display)
    counted.expect(3, 1)
    counted.begin("svd at 5x")(Doing("tuning", 9, 9, "rows", result="AUC 0.71"))
    display.tick()
    counted.end("AUC 0.72")
    assert printed == [
        "1 of 3 are there already",
        "[2/3] svd at 5x: tuning: 9 of 9 rows, AUC 0.71, 0 s",
        "[2/3] AUC 0.72",
    ]


def test_without_a_terminal_lines_come_by_themselves(monkeypatch: pytest.MonkeyPatch):
    came, lines = Event(), list[str]()

    def take(line: str) -> None:
        lines.append(line)
        came.set()

    monkeypatch.setattr(progress, "_print", take)
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    with progress.shown() as watch:
        watch(Doing("encoding", 1, 4, "layers", note="tables.item: half"))
        assert came.wait(30), "no line came"
    assert lines[0].startswith("encoding: 1 of 4 layers, tables.item: half, ")


def test_on_a_terminal_a_bar_shows_the_step(monkeypatch: pytest.MonkeyPatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", terminal)
    with progress._bar() as bar:
        task = bar.add_task("", total=None, note="")
        display = Display("control", show=lambda display: progress._draw(bar, task, display))
        display(Doing("planning", 3, 8, "candidates", note="tables.item: 3 of 8"))
        (shown,) = bar.tasks
        assert (shown.description, shown.completed, shown.total) == ("control: planning", 3, 8)
        assert shown.fields["note"] == "tables.item: 3 of 8"
        display(Doing("encoding", 0, 2, "layers"))
        assert (shown.description, shown.completed, shown.total) == ("control: encoding", 0, 2)
        bar.refresh()
    assert "control: encoding" in terminal.file.getvalue()


def _layers(names: list[str]) -> list[aside.Asked]:
    _, found, measured = small.measured()
    layers = measured.measured(found).layers.values()
    return [(layer, every(layer.spec, names)) for layer in layers]


def _size(asked: aside.Asked) -> int:
    return sum(map(len, asked[1].values()))


@pytest.mark.slow
def test_planning_says_the_layer_and_how_many_of_its_candidates_are_made():
    told: list[State] = []
    asked = _layers(["keep", "low_rank"])
    list(aside.by_layer(asked, told.append))
    size, name = _size(asked[0]), asked[0][0].spec.name
    notes = [state.note for state in told]
    assert [n for n in notes if n.startswith(f"{name}: ")] == [
        f"{name}: {n} of {size}" for n in range(size + 1)
    ]
    assert [state.done for state in told] == sorted(state.done for state in told)
    assert {(state.step, state.unit) for state in told} == {("planning", "candidates")}
    assert told[-1].done == told[-1].total == sum(map(_size, asked))


@pytest.mark.slow
def test_processes_tell_how_many_candidates_of_the_layers_they_are_at_are_made(
    monkeypatch: pytest.MonkeyPatch,
):
    """The clock between two looks is replaced: one is taken before each result."""
    told: list[State] = []
    asked = _layers(["keep", "low_rank"])[:3]
    tasks = [(layer.spec, layer, wanted) for layer, wanted in asked]
    looked: set[int] = set()

    class Waited:
        def __init__(self, future):
            self.not_done = set() if id(future) in looked else {future}
            if self.not_done:
                future.exception(timeout=120)
                looked.add(id(future))

    monkeypatch.setattr(aside, "cores", lambda: 2)
    monkeypatch.setattr(aside, "wait", lambda futures, seconds: Waited(futures[0]))
    aside._executor.cache_clear()
    counter = Counter(told.append, "planning", 5 + sum(map(_size, asked)), "candidates")
    found = list(aside._from_processes(tasks, counter, 5))
    assert [sum(map(len, one.values())) for one in found] == [_size(one) for one in asked]
    assert told[1].done >= 5 + _size(asked[0]), "the first layer's were counted where it was made"
    assert told[-1].done == told[-1].total


def test_the_layers_at_work_are_those_that_are_not_through(monkeypatch: pytest.MonkeyPatch):
    tasks = [(layer.spec, layer, wanted) for layer, wanted in _layers(["keep", "low_rank"])]
    sizes = [_size((layer, wanted)) for _, layer, wanted in tasks]
    monkeypatch.setattr(aside, "cores", lambda: 2)
    made = torch.zeros(len(tasks), dtype=torch.long).numpy()
    made[0], made[1] = sizes[0], 3
    first, second = tasks[1][0].name, tasks[2][0].name
    assert aside._at_work(tasks, made) == f"{first}: 3 of {sizes[1]}, {second}: 0 of {sizes[2]}"


def test_a_library_user_sees_nothing_unless_asked(capfd: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    case, told = dlrm(), list[State]()
    batches = [(case.inputs(seed), torch.zeros(B)) for seed in range(2, 6)]
    given = {"score": case.score, "methods": ["row_int4", "svd"]}
    quietly = embedcomp.plan(case.model, batches, "4x", **given)
    assert capfd.readouterr() == ("", "")
    asked = embedcomp.plan(case.model, batches, "4x", **given, progress=told.append)
    assert asked.layers == quietly.layers
    steps = list(dict.fromkeys(state.step for state in told))
    assert {"measuring", "planning", "encoding"} <= set(steps)
    measured = [state.done for state in told if state.step == "measuring"]
    assert measured == list(range(len(batches) + 1))
    encoded = [state for state in told if state.step == "encoding"]
    assert encoded[-1].done == encoded[-1].total == sum(p.method != "keep" for p in asked.layers)


@pytest.mark.slow
def test_every_step_of_a_compression_says_how_far_it_is(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
):
    told: list[State] = []
    source = ModelSource(model="deepfm", settings={"width": 4, "hidden": [8]}).complete()
    learning = TrainSettings(epochs=1, batch_rows=512, embedding_l2=0.0)
    made = train(synth_log, synth_features, source, learning, tmp_path / "m", watch=told.append)
    original = Artifact.open(made.folder)
    tuning = TuneSettings(epochs=1, batch_rows=512)
    settings = CompressSettings(
        budget="3x", methods=("row_int8", "svd"), measure_rows=2000, tune=tuning
    )
    measured = measure(original, synth_log, settings, told.append)
    held = held_out(original, synth_log, settings, told.append)
    planned = plan(original, measured, settings, held, told.append)
    compress(
        original, synth_log, measured, planned, settings, tmp_path / "c", held=held,
        watch=told.append,
    )  # fmt: skip
    steps = {state.step for state in told}
    assert {"training", "measuring", "planning", "encoding", "tuning", "evaluating"} <= steps
    rows = [state for state in told if state.step == "measuring"]
    assert rows[-1].done == rows[-1].total and rows[-1].unit == "rows"
    layers = [state for state in told if state.step == "encoding"]
    assert {p.layer for p in planned.layers} == {s.note.partition(": ")[0] for s in layers} - {""}
    assert any(state.step == "tuning" and "AUC" in state.result for state in told)


def test_what_is_counted_is_done_when_the_next_is_asked_for():
    told: list[State] = []
    items = Counter(told.append, "measuring", 5, "rows").over(["ab", "cde"], len)
    assert next(items) == "ab" and told[-1].done == 0
    assert next(items) == "cde" and told[-1].done == 2
    assert list(items) == [] and told[-1].done == 5
    quiet(told[-1])
