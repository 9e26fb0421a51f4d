"""Short runs that choose among plans."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning.plan import Plan, Trial, _caption
from embedcomp.recipes import families, trying
from embedcomp.recipes.forming import Forming
from embedcomp.recipes.settings import CompressSettings
from embedcomp.storage.kind import CannotStore
from embedcomp.train import probe
from embedcomp.train.fit import Data, Report, _Run, fit
from embedcomp.train.settings import TrainSettings
from tests.train.killed import Killed
from tests.train.test_train import small_model

SOURCE = ModelSource(model="dcnv2", settings={"width": 8, "hidden": [8], "cross_layers": 1})
ONCE = TrainSettings(epochs=1, batch_rows=512, checkpoint_rows=1024, embedding_l2=50.0, distil=0.7)
FAMILIES = ("hashed", "optembed", "half", "low_rank")


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder, well = tmp_path_factory.mktemp("trying"), replace(ONCE, epochs=3, batch_rows=128)
    return recipes.train(synth_log, synth_features, SOURCE.complete(), well, folder)


def asked(original: Artifact, methods: Sequence[str], **more: Any) -> CompressSettings:
    values = {
        "budget": "8x",
        "methods": tuple(methods),
        "train": ONCE,
        "measure_rows": 2000,
        "held_rows": 1000,
    }
    return CompressSettings(**{**values, **more})


@pytest.fixture(scope="module")
def planning(synth_log: ClickLog, original: Artifact) -> recipes.Planning:
    measured = recipes.measure(original, synth_log, asked(original, FAMILIES))
    return recipes.Planning(original, measured)


def made(log: ClickLog, original: Artifact, plan: Plan, out: Path, **more: Any) -> Artifact:
    watch = more.pop("watch", recipes.quiet)
    settings = asked(original, FAMILIES, **more)
    measured = recipes.measure(original, log, settings)
    return recipes.compress(original, log, measured, plan, settings, out, watch=watch)


def forming(log: ClickLog, original: Artifact, **more: Any) -> Forming:
    settings = asked(original, FAMILIES, **more)
    measured = recipes.measure(original, log, settings)
    held, data = recipes.held_out(original, log, settings), Data(log, original.features)
    return Forming(original, original.model(), measured, settings, data, held)


@pytest.mark.slow
def test_each_family_of_methods_has_a_plan(planning: recipes.Planning, original: Artifact) -> None:
    plan = planning.plan(asked(original, FAMILIES))
    names = [one.name for one in (plan, *plan.others)]
    assert names[0] == "mix" and set(names) <= {"mix", "post-training", "hashed", "optembed"}
    assert {"hashed", "optembed"} <= set(names)  # the mix has no more than some of either
    for one in plan.others:
        assert one.bytes_after <= plan.budget_bytes and one.others == ()
        used = {planned.method for planned in one.layers}
        assert used.intersection(FAMILIES[:2]) == {one.name}.intersection(FAMILIES)
        assert "low_rank" in {planned.method for planned in one.tables}  # small ones have others
    for number in (1, 2):
        fewer = planning.plan(asked(original, FAMILIES, plans_tried=number))
        assert fewer.others == plan.others[: number - 1]


@pytest.mark.slow
def test_from_the_log_every_family_has_its_turn(
    planning: recipes.Planning, original: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "TRIED", 2)
    assert len(planning.plan(asked(original, FAMILIES)).others) == 1
    drawn = asked(original, FAMILIES, from_log=True, train=replace(ONCE, distil=None))
    assert {one.name for one in planning.plan(drawn).others} >= {"hashed", "optembed"}
    assert len(planning.plan(replace(drawn, plans_tried=2)).others) == 1


@pytest.mark.slow
def test_nothing_is_tried_where_one_family_is_offered(
    planning: recipes.Planning, original: Artifact
) -> None:
    untrained = TrainSettings(epochs=0)
    for settings in (
        asked(original, ("half", "low_rank")),
        asked(original, ("hashed",), rest=("keep",), budget="60%"),
        asked(original, (), train=untrained, budget="50%"),
    ):
        plan = planning.plan(settings)
        assert plan.others == () and plan.name == ""
    with pytest.raises(BadSettings, match="plans_tried is 0"):
        asked(original, FAMILIES, plans_tried=0)


AUCS = {"a": 0.70, "b": 0.72, "c": 0.74, "d": 0.71, "e": math.nan, "f": 0.73}


def halved(
    monkeypatch: pytest.MonkeyPatch,
    aucs: dict[str, float],
    epochs: int,
    of_trials: float | None = None,
    **later: float,
) -> tuple[Plan, list[tuple[str, float]]]:
    """The plan that is chosen where runs have these AUCs, later ones others; and all the runs."""
    ran: list[tuple[str, float]] = []

    def run(plan: Plan, epochs: float) -> Trial:
        name = plan.name
        auc = later.get(name, aucs[name]) if name in dict(ran) else aucs[name]
        ran.append((name, epochs))
        refused = "too large" if math.isnan(auc) else ""
        return Trial(name=name, bytes=1, epochs=epochs, auc=auc, logloss=1 - auc, refused=refused)

    monkeypatch.setattr(trying, "_Trials", lambda *given: run)
    empty = Plan(
        budget_bytes=1, bytes_before=1, bytes_after=1, layers=(), untouched={}, single_valued=()
    )
    plans = [replace(empty, name=name) for name in aucs]
    train = replace(ONCE, epochs=epochs)
    settings = CompressSettings(budget="5x", train=train, trial_epochs=of_trials)
    given: Any = type("Given", (), {"settings": settings})
    plan = replace(plans[0], others=tuple(plans[1:]))
    return trying.best(given, plan, Path(), recipes.quiet), ran


def test_the_better_half_is_tried_for_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, ran = halved(monkeypatch, AUCS, 12, f=0.8)
    assert ran == [*((name, 1.0) for name in AUCS), ("c", 2.0), ("f", 2.0), ("b", 2.0)]
    assert chosen.name == "f" and chosen.others == ()
    assert [(one.name, one.epochs) for one in chosen.trials] == ran


@pytest.mark.parametrize("plans", [2, 3, 4, 5, 6])
def test_trials_take_as_long_as_the_training_that_follows(
    plans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = dict(list(AUCS.items())[:plans])
    chosen, ran = halved(monkeypatch, some, 8)
    assert chosen.name == max(some, key=lambda name: some[name] if some[name] > 0 else 0)
    assert sum(epochs for _, epochs in ran) == pytest.approx(8)
    _, ran = halved(monkeypatch, some, 8, 3.0)
    assert sum(epochs for _, epochs in ran) == pytest.approx(3)


def test_of_equal_plans_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert halved(monkeypatch, {"a": 0.7, "b": 0.7, "c": 0.7}, 1)[0].name == "a"
    refused = {"a": math.nan, "b": math.nan}
    assert halved(monkeypatch, refused, 1)[0].name == "a"  # carrying it out says why


@pytest.mark.slow
def test_a_short_run_is_a_part_of_the_whole_one(
    synth_log: ClickLog,
    original: Artifact,
    planning: recipes.Planning,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "FEWEST", 100)
    plan = planning.plan(asked(original, FAMILIES))
    (searched,) = (one for one in plan.others if one.name == "optembed")
    (hashed,) = (one for one in plan.others if one.name == "hashed")
    left_open = TrainSettings(epochs=10, batch_rows=512)
    whole = forming(synth_log, original, train=left_open)
    for one, epochs, wanted in (
        (hashed, 0.25, (1, 0.25)),
        (hashed, 1.5, (2, 0.75)),
        (hashed, 2.0, (2, 1.0)),
        (searched, 0.5, (2, 0.25)),
        (searched, 2.5, (3, 2.5 / 3)),
        (hashed, 1e-9, (1, 100 / synth_log.rows("train"))),
    ):
        short = trying.shorter(whole, one, epochs, tmp_path)
        assert (short.settings.train.epochs, short.data.share) == pytest.approx(wanted)
        assert short.data.taught == tmp_path
        assert not short.settings.train.probes


def test_a_share_of_the_rows_is_a_part_of_an_epoch(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """With the L2 that the whole epoch has in a step, and with checkpoints of its own."""
    quarter, whole = (Data(synth_log, synth_features, share=share) for share in (0.25, 1.0))
    assert whole.pieces() == (synth_log.pieces("train"), synth_log.pieces("valid"))
    few = sum(piece.rows for piece in quarter.pieces()[1])
    assert few == pytest.approx(synth_log.rows("valid") / 4, abs=probe.RUNS)
    rows, l2 = [], []
    for data in (quarter, whole):
        seen: list[Report] = []
        fit(small_model(synth_features), data, ONCE, tmp_path, watch=seen.append)
        rows.append(seen[-1].rows_total)
        made = _Run(small_model(synth_features), data.pieces(), data, ONCE, None, None)
        groups = [group for one in made.optimizers for group in one.param_groups]
        l2.append([group["l2"] for group in groups if "l2" in group])
    assert rows == [pytest.approx(rows[1] / 4, abs=probe.RUNS), synth_log.rows("train")]
    assert l2[0] == pytest.approx(l2[1], rel=0.01) and sum(l2[0]) > 0


@pytest.fixture(scope="module")
def two(planning: recipes.Planning, original: Artifact) -> dict[str, Plan]:
    """A plan in which many ids share few rows, and one that rounds numbers to bfloat16."""
    sizes = model_bytes(original.model())
    few = str(sizes["dense"] + sizes["tables"] // 200)
    plans = {
        "poor": planning.plan(asked(original, ("hashed",), rest=("keep",), budget=few)),
        "good": planning.plan(asked(original, ("half",), budget="60%")),
    }
    return {name: replace(plan, name=name) for name, plan in plans.items()}


@pytest.mark.slow
@pytest.mark.parametrize("from_log", [False, True])
@pytest.mark.parametrize("first", ["poor", "good"])
def test_the_better_plan_is_chosen(
    first: str,
    from_log: bool,
    synth_log: ClickLog,
    original: Artifact,
    two: dict[str, Plan],
    tmp_path: Path,
) -> None:
    """Whichever the planner likes more; the artifact tells what was tried."""
    how = replace(ONCE, distil=None if from_log else 0.7)
    rate = 3e-3 if from_log else 3e-5  # what begins well is not to be learnt again
    how = replace(how, learning_rate=rate, table_learning_rate=rate)
    (other,) = {"poor", "good"} - {first}
    plan = replace(two[first], others=(two[other],))
    small = made(synth_log, original, plan, tmp_path, train=how, from_log=from_log)
    assert small.plan is not None and small.plan.name == "good" and small.plan.others == ()
    assert small.manifest.bytes["total"] == two["good"].bytes_after
    trials = {one.name: one for one in small.plan.trials}
    assert [*trials] == [first, other]
    assert trials["good"].auc > trials["poor"].auc + 0.01
    for one in trials.values():
        assert one.bytes == two[one.name].bytes_after
        assert 0 < one.logloss < 1 and one.epochs == pytest.approx(
            probe.FEWEST / synth_log.rows("train")
        )
    assert small.origin.plan is not None
    assert small.origin.plan["trials"][0]["name"] == first
    assert Plan.from_dict(json.loads(json.dumps(small.plan.to_dict()))) == small.plan
    assert not list(tmp_path.glob(".checkpoints"))


@pytest.fixture(scope="module")
def mixed(planning: recipes.Planning, original: Artifact) -> Plan:
    """A plan and another one that is searched for in training."""
    plan = planning.plan(asked(original, FAMILIES))
    others = tuple(one for one in plan.others if one.name == "optembed")
    assert others
    return replace(plan, others=others)


class Steps(dict[str, int]):
    """A watch that counts the steps of each run, and kills one."""

    def __init__(self, run: str = "", number: int = 0):
        self._last = run, number

    def __call__(self, state: Any) -> None:
        if isinstance(state, Report) and state.valid is None:
            self[state.step] = self.get(state.step, 0) + 1
            if (state.step, self[state.step]) == self._last:
                raise Killed


@pytest.fixture(scope="module")
def whole(
    synth_log: ClickLog, original: Artifact, mixed: Plan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Steps]:
    steps = Steps()
    return made(synth_log, original, mixed, tmp_path_factory.mktemp("whole"), watch=steps), steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "number"),
    [
        ("trying the plan optembed", 3),
        ("trying the plan optembed", 13),
        ("training the compressed form", 7),
    ],
)
def test_a_run_that_is_killed_goes_on_where_it_was(
    run: str,
    number: int,
    synth_log: ClickLog,
    original: Artifact,
    mixed: Plan,
    whole: tuple[Artifact, Steps],
    tmp_path: Path,
) -> None:
    """In the search of a trial, in its training, and in the one that follows."""
    wanted, every = whole
    with pytest.raises(Killed):
        made(synth_log, original, mixed, tmp_path, watch=Steps(run, number))
    steps = Steps()
    resumed = made(synth_log, original, mixed, tmp_path, watch=steps)
    assert "trying the plan mix" in every and "trying the plan mix" not in steps
    assert ("trying the plan optembed" in steps) is run.startswith("trying")
    assert steps[run] < every[run]
    assert resumed.plan == wanted.plan and resumed.plan is not None
    assert [one.name for one in resumed.plan.trials] == ["mix", "optembed"]
    for name, tensor in wanted.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


@pytest.mark.slow
def test_what_was_tried_with_other_settings_is_tried_again(
    synth_log: ClickLog, original: Artifact, two: dict[str, Plan], tmp_path: Path
) -> None:
    plan = replace(two["poor"], others=(two["good"],))
    ran: list[str] = []

    def told(state: Any) -> None:
        if isinstance(state, Report) and state.step not in ran[-1:]:
            ran.append(state.step)

    def choose(**more: Any) -> list[str]:
        ran.clear()
        given = forming(synth_log, original, **more)
        trying.best(given, plan, tmp_path, told)
        return [step for step in ran if step.startswith("trying")]

    both = ["trying the plan poor", "trying the plan good"]
    assert choose() == both
    assert choose() == []
    assert choose(train=replace(ONCE, seed=1)) == both
    assert choose(train=replace(ONCE, seed=1)) == []


@pytest.mark.slow
def test_workers_choose_the_same_plan(
    synth_log: ClickLog, original: Artifact, two: dict[str, Plan], tmp_path: Path
) -> None:
    """One of them writes down what was tried; a trial that one cannot make, none can."""
    plan = replace(two["poor"], others=(two["good"],))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_choose, (port, synth_log.path, str(original.folder), str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["name"] == "good" and [one["name"] for one in first["trials"]] == ["poor", "good"]


def _choose(rank: int, port: int, path: str, original: str, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    plan = Plan.from_dict(json.loads(Path(folder, "plan.json").read_text()))
    given = forming(ClickLog(path), Artifact.open(Path(original)))
    chosen = trying.best(given, plan, Path(folder), recipes.quiet)
    assert trying.best(given, plan, Path(folder), recipes.quiet) == chosen
    Path(folder, f"{rank}.json").write_text(json.dumps(chosen.to_dict()))
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_plan_that_cannot_be_carried_out_is_not_chosen(
    synth_log: ClickLog,
    original: Artifact,
    two: dict[str, Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    once = Forming.form

    def form(self: Forming, plan: Plan, folder: Path, watch: Any) -> Any:
        if plan.name == "good":
            raise CannotStore(1e6, "float16")
        return once(self, plan, folder, watch)

    monkeypatch.setattr(Forming, "form", form)
    plan = replace(two["good"], others=(two["poor"],))
    chosen = trying.best(forming(synth_log, original), plan, tmp_path, recipes.quiet)
    assert chosen.name == "poor"
    assert "cannot be carried out: values up to 1e+06 do not fit" in str(chosen.trials[0])


def test_a_plan_tells_what_it_was_tried_beside(two: dict[str, Plan]) -> None:
    plan = replace(two["poor"], others=(two["good"],))
    assert _caption(plan).startswith("short runs choose among 2 plans: poor (predicted loss ")
    trial = Trial(name="good", bytes=1234, epochs=0.25, auc=0.75, logloss=0.5)
    told = _caption(replace(two["good"], trials=(trial,)))
    line = "good: 1,234 bytes, AUC 0.75000, log loss 0.50000 after 0.25 epochs"
    assert told == f"good, chosen by short runs:\n{line}"
    assert _caption(two["good"]) == ""
