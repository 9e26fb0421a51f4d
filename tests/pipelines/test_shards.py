"""Shards on Ray add up to exactly what one process finds, and survive the death of a task."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BudgetTooSmall, EmbedcompError
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.counts import LogCounts, count
from embedcomp.log.features import VOCABULARIES, Features
from embedcomp.pipelines import job, shards
from embedcomp.pipelines.cluster import largest_share
from embedcomp.pipelines.shards import Shards
from embedcomp.recipes.settings import CompressSettings, JobSettings
from embedcomp.support.metrics import Quality
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def original(pieces_log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model with fresh weights, and one thread, as Ray gives a task."""
    torch.set_num_threads(1)
    found = count(pieces_log, pieces_log.pieces("train"))
    features = Features.from_counts(pieces_log, found, 2)
    source = ModelSource(model="dcnv2", settings={"width": 4, "hidden": [16]}).complete()
    out = tmp_path_factory.mktemp("original")
    return recipes.train(pieces_log, features, source, TrainSettings(epochs=0), out)


@pytest.mark.parametrize("tasks", [1, 3])
def test_counts_are_those_of_one_process(cluster: str, pieces_log: ClickLog, tasks: int) -> None:
    pieces = pieces_log.pieces("train")
    alone = count(pieces_log, pieces)
    work, none = partial(count, pieces_log), LogCounts.empty(pieces_log)
    spread = shards.total(work, pieces, Shards(tasks=tasks), none)
    assert (spread.rows, spread.positives) == (alone.rows, alone.positives)
    for name, ids in alone.ids.items():
        for mine, theirs in zip(ids.ranked()[:2], spread.ids[name].ranked()[:2], strict=True):
            assert mine.tolist() == theirs.tolist()
    for name, sums in alone.dense.items():
        assert spread.dense[name].mean_and_scale() == sums.mean_and_scale()


@pytest.mark.parametrize("memory", [1 << 30, 40_000])
@pytest.mark.parametrize("kept", [False, True])
def test_the_jobs_vocabularies_are_those_of_one_process(
    cluster: str, pieces_log: ClickLog, tmp_path: Path, memory: int, kept: bool
) -> None:
    """To the byte, whether counts fit into memory or are added up by tasks, kept or not."""
    alone = Features.from_counts(pieces_log, count(pieces_log, pieces_log.pieces("train")), 2)
    alone.save(tmp_path / "alone")
    settings = JobSettings(
        log=pieces_log.path,
        out=str(tmp_path / "out"),
        compress=CompressSettings(budget="2x"),
        counts=str(tmp_path / "counts") if kept else "",
        count_memory=str(memory),
    )
    found = job.Job(settings).count()
    for file in ("features.json", VOCABULARIES):
        assert (found / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    assert not (tmp_path / "out/.counting").exists()
    assert bool([*tmp_path.glob("counts/*/entry.json")]) == kept


def test_a_job_whose_out_is_a_url_copies_what_its_steps_make(
    cluster: str, pieces_log: ClickLog, tmp_path: Path
) -> None:
    there, work = tmp_path / "there", str(tmp_path / "work")
    settings = JobSettings(
        log=pieces_log.path,
        out=f"file://{there}",
        work=work,
        compress=CompressSettings(budget="2x"),
    )
    found = job.Job(settings).count()
    assert found == tmp_path / "work/count"
    names = {"features.json", VOCABULARIES}
    assert {file.name for file in (there / "count").iterdir()} == names
    for name in names:
        assert (there / "count" / name).read_bytes() == (found / name).read_bytes()
    assert (there / ".steps/count.json").read_bytes() == (
        tmp_path / "work/.steps/count.json"
    ).read_bytes()


@pytest.mark.parametrize("tasks", [1, 3])
def test_statistics_are_those_of_one_process(
    cluster: str, pieces_log: ClickLog, original: Artifact, tasks: int
) -> None:
    settings = CompressSettings(budget="2x", measure_rows=5000)
    alone = recipes.measure(original, pieces_log, settings).to_tensors()
    pieces = recipes.measure_pieces(pieces_log, settings)
    share = recipes.measure_share(pieces, settings)
    work = partial(job._measure, pieces_log, original.folder, share)
    spread = recipes.total(shards.in_piece_order(work, pieces, Shards(tasks=tasks)))
    assert spread.to_tensors().keys() == alone.keys()
    for name, tensor in spread.to_tensors().items():
        assert torch.equal(tensor, alone[name]), name


def test_quality_is_that_of_one_process(
    cluster: str, pieces_log: ClickLog, original: Artifact
) -> None:
    pieces = pieces_log.pieces("train")
    alone = quality(original.model(), pieces_log, original.features, pieces)
    work = partial(job._quality, pieces_log, original.folder)
    spread = shards.total(work, pieces, Shards(tasks=3), Quality())
    assert np.array_equal(spread.counts, alone.counts)
    assert spread.to_dict() == pytest.approx(alone.to_dict(), rel=1e-7)


def dies_once(mark: Path, pieces: list[Piece]) -> Iterator[int]:
    for piece in pieces:
        if piece.row_group == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece.row_group


def test_a_killed_task_is_run_again_and_the_order_is_kept(
    cluster: str, pieces_log: ClickLog, tmp_path: Path
) -> None:
    pieces = pieces_log.pieces("train")
    work = partial(dies_once, tmp_path / "mark")
    found = list(shards.in_piece_order(work, pieces, Shards(tasks=2)))
    assert (tmp_path / "mark").exists()
    assert found == [piece.row_group for piece in pieces]


def too_small() -> None:
    raise BudgetTooSmall(1000, 2000, ("user", 1500), 100)


def test_a_users_mistake_in_a_task_arrives_as_its_sentence(cluster: str) -> None:
    with pytest.raises(EmbedcompError) as caught:
        shards.once(too_small, num_cpus=1, retries=0)
    assert str(caught.value) == str(BudgetTooSmall(1000, 2000, ("user", 1500), 100))


def test_no_worker_is_given_more_than_its_node_has() -> None:
    assert largest_share([2], 1) == 2
    assert largest_share([4, 4, 4], 4) == 2
    assert largest_share([8, 2], 2) == 4
    assert largest_share([2], 3) == 0
    assert largest_share([], 1) == 0
