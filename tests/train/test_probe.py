"""The weight of the L2 that is chosen where none is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.support.metrics import Quality
from embedcomp.train import probe
from embedcomp.train.settings import TrainSettings
from tests.train.killed import Killed
from tests.train.test_train import trained

PROBES = {6000.0: 0.65, 24000.0: 0.70, 96000.0: 0.60, 384000.0: 0.9}


def of_auc(auc: float, clicked: int = 10_000) -> Quality:
    class Fixed(Quality):
        pass

    found = Fixed()
    found.counts[:, 0] = 3 * clicked, clicked
    Fixed.auc = auc  # type: ignore[assignment]
    return found


def chosen(
    aucs: dict[float, float], file: Path, clicked: int = 10_000
) -> tuple[float, list[float]]:
    """The weight chosen, and those that were tried, in their order."""
    tried: list[float] = []

    def train(l2: float) -> Quality:
        tried.append(l2)
        return of_auc(aucs[l2], clicked)

    return probe.chosen_l2(probe.Probes("embedding_l2", train, file)), tried


@pytest.mark.parametrize(
    ("aucs", "wanted", "tried"),
    [
        ([0.65, 0.70, 0.64, 0.90], 24000, [6000, 24000, 96000]),
        ([0.65, 0.67, 0.71, 0.80], 96000, [6000, 24000, 96000]),  # which is far enough
        ([0.65, 0.64, 0.90, 0.90], 6000, [6000, 24000]),  # past a fall none looks
        ([0.65, 0.652, 0.90, 0.90], 6000, [6000, 24000]),  # no clear rise: as usual
    ],
)
def test_probes_go_from_the_usual_weight_as_far_as_the_auc_clearly_rises(
    tmp_path: Path, aucs: list[float], wanted: float, tried: list[float]
) -> None:
    by_weight = dict(zip(PROBES, aucs, strict=True))
    assert chosen(by_weight, tmp_path / "probes.json") == (wanted, tried)


def test_a_rise_is_clear_beyond_the_error_of_an_auc_of_so_few_clicks(tmp_path: Path) -> None:
    """The error of 10,000 clicks is 0.0029, that of 100 ten times as much."""
    aucs = {**PROBES, 24000.0: 0.66}
    assert chosen(aucs, tmp_path / "many")[0] == 24000
    assert chosen(aucs, tmp_path / "few", clicked=100)[0] == 6000


def test_the_error_of_a_probe_is_that_of_an_auc_without_knowledge(tmp_path: Path) -> None:
    """400 clicks among 4,000 rows, drawn 300 times."""
    rng = np.random.default_rng(0)
    ranks = np.argsort(rng.random((300, 4000)), axis=1)[:, :400]  # of the clicked rows
    aucs = (ranks.sum(1) - 400 * 399 / 2) / (400 * 3600)
    assert aucs.mean() == pytest.approx(0.5, abs=0.005)
    found = probe.Probes("distil", lambda value: of_auc(0.5, 400), tmp_path / "probes.json")(0.5)
    assert aucs.std() == pytest.approx(found.error, rel=0.15)


def test_probes_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    calls: list[float] = []

    def train(l2: float) -> Quality:
        if len(calls) == 1:
            raise Killed
        calls.append(l2)
        return of_auc(PROBES[l2])

    with pytest.raises(Killed):
        probe.chosen_l2(probe.Probes("embedding_l2", train, tmp_path / "probes.json"))
    assert chosen(PROBES, tmp_path / "probes.json") == (24000, [24000, 96000])


def test_a_share_is_runs_of_rows_from_all_over_the_log() -> None:
    pieces = [Piece("train", "f", i, rows) for i, rows in enumerate([1000, 300, 2700])]
    found = probe.sample(pieces, 800)
    assert sum(piece.rows for piece in found) == 800
    before = {0: 0, 1: 1000, 2: 1300}
    starts = [before[piece.row_group] + piece.first for piece in found]
    assert [start for start in starts if start % 500 == 0] == list(range(0, 4000, 500))
    assert probe.sample(pieces, 4000) == pieces


@pytest.mark.slow
def test_a_run_tells_its_probes_and_a_weight_that_is_given_has_none(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "FEWEST", 1000)
    monkeypatch.setattr(probe, "STEPS", 4)
    _, chosen_one = trained(synth_log, synth_features, tmp_path / "a", TrainSettings(epochs=1))
    tried = chosen_one[0]["probes"]
    assert {one["setting"] for one in tried} == {"embedding_l2"}
    assert 6000.0 in [one["value"] for one in tried]
    given = TrainSettings(epochs=1, embedding_l2=chosen_one[0]["embedding_l2"])
    _, same = trained(synth_log, synth_features, tmp_path / "b", given)
    assert "probes" not in same[0] and same[0]["auc"] == chosen_one[0]["auc"]


def test_a_log_that_is_too_small_to_tell_has_the_usual_weight(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    _, history = trained(synth_log, synth_features, tmp_path, TrainSettings(epochs=1))
    assert history[0]["embedding_l2"] == probe.USUAL_L2 and "probes" not in history[0]


@pytest.mark.slow
def test_a_run_that_was_killed_between_probes_ends_as_if_it_had_not_been(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "FEWEST", 1000)
    monkeypatch.setattr(probe, "STEPS", 4)
    settings = TrainSettings(epochs=1, batch_rows=512)
    whole, history = trained(synth_log, synth_features, tmp_path / "whole", settings)
    write: Callable[..., Any] = probe._write

    def killed(file: Path, probes: list[probe.Probe]) -> None:
        write(file, probes)
        if len(probes) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(probe, "_write", killed)
        trained(synth_log, synth_features, tmp_path / "killed", settings)
    resumed, again = trained(synth_log, synth_features, tmp_path / "killed", settings)
    assert history == again
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
