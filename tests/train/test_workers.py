"""Several workers that train one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from embedcomp.errors import BadSettings, BudgetTooSmall
from embedcomp.log.batches import read_rows
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.support.metrics import Quality
from embedcomp.train import checkpoint, probe, workers
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings, refuse_too_many
from tests.train.joined import train_joined
from tests.train.rounded import rounded_model
from tests.train.test_teacher import Teacher
from tests.train.test_train import small_model
from tests.train.two_workers import in_two_workers

pytestmark = [pytest.mark.xdist_group("two workers"), pytest.mark.slow]

ONE_EPOCH = TrainSettings(epochs=1, precision="float32", embedding_l2=50.0, batch_rows=350)
CASES = {
    "adam": ONE_EPOCH,
    "rowwise_adagrad": replace(ONE_EPOCH, table_optimizer="rowwise_adagrad"),
    "uneven": replace(ONE_EPOCH, batch_rows=2400),
    "taught": replace(ONE_EPOCH, distil=0.6),
    "probed": replace(ONE_EPOCH, embedding_l2=None),
    "rounded": ONE_EPOCH,
}


def test_shares_hold_every_row_once_and_differ_by_one_row_at_most() -> None:
    pieces = [Piece("train", "f", i, rows) for i, rows in enumerate([1000, 300, 500, 900, 10])]
    assert workers.shares(pieces, 1) == [pieces]
    for count in (2, 3, 7):
        shares = workers.shares(pieces, count)
        sizes = [sum(piece.rows for piece in share) for share in shares]
        assert sum(sizes) == 2710 and max(sizes) - min(sizes) <= 1
        rows = [
            (p.row_group, p.first + i) for share in shares for p in share for i in range(p.rows)
        ]
        assert rows == [(piece.row_group, i) for piece in pieces for i in range(piece.rows)]


def test_a_part_of_a_piece_reads_its_own_rows(
    synth_log: ClickLog, synth_features: Features
) -> None:
    (piece,) = synth_log.pieces("train")
    (whole,) = read_rows(synth_log, synth_features, [piece])
    parts = list(read_rows(synth_log, synth_features, [piece.part(10, 900).part(5, 800)]))
    assert (parts[0].single == whole.part(15, 810).single).all() and len(parts) == 1


def test_a_part_of_a_piece_may_begin_behind_what_is_decoded_at_a_time(
    synth_log: ClickLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcomp.log.click_log.READ_ROWS", 100)
    (piece,) = synth_log.pieces("train")
    wanted = pq.read_table(piece.file).column("hour").slice(250, 120).to_pylist()
    read = [batch.column("hour").to_pylist() for batch in synth_log.read(piece.part(250, 370))]
    assert [hour for hours in read for hour in hours] == wanted and len(read) == 2


@pytest.fixture(scope="module")
def trained(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Tensor]]]:
    """By case, the weights of each of two workers as training left them."""
    folder = tmp_path_factory.mktemp("workers")
    synth_features.save(folder / "features")
    _log_of(synth_log, 9_601, folder / "uneven")
    in_two_workers(_work, synth_log.path, str(folder))
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return {case: [told[case] for told in found] for case in found[0]}


@pytest.mark.parametrize("case", ["adam", "rowwise_adagrad", "taught"])
def test_workers_end_with_the_model_of_one_process_that_has_their_batches_together(
    synth_log: ClickLog,
    synth_features: Features,
    trained: dict[str, list[dict[str, Tensor]]],
    case: str,
) -> None:
    """The log has one row group, and the last batches are short."""
    wanted = small_model(synth_features)
    teacher = Teacher(synth_features) if case == "taught" else None
    train_joined(wanted, Data(synth_log, synth_features), CASES[case], 2, teacher)
    start = small_model(synth_features).state_dict()
    for name, tensor in wanted.state_dict().items():
        assert not torch.allclose(tensor, start[name], atol=1e-3), f"{name} did not move"
        for model in trained[case]:
            torch.testing.assert_close(model[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_a_worker_whose_rows_are_used_up_waits_for_the_last_one(
    synth_features: Features,
    trained: dict[str, list[dict[str, Tensor]]],
    tmp_path: Path,
    synth_log: ClickLog,
) -> None:
    """4,800 and 4,801 rows: one of two workers has a batch of one row more."""
    log = _log_of(synth_log, 9_601, tmp_path / "log")
    wanted = small_model(synth_features)
    train_joined(wanted, Data(log, synth_features), CASES["uneven"], 2)
    first, second = trained["uneven"]
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        if "embedding_bags" not in name:  # rows of the repeated batch count as looked up
            torch.testing.assert_close(first[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


def test_workers_that_probe_for_the_l2_end_with_one_model(
    trained: dict[str, list[dict[str, Tensor]]],
) -> None:
    first, second = trained["probed"]
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["out.weight"], trained["adam"][0]["out.weight"])


def test_workers_train_grids_as_one_process_does(
    synth_log: ClickLog,
    synth_features: Features,
    trained: dict[str, list[dict[str, Tensor]]],
) -> None:
    first, second = trained["rounded"]
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    wanted = rounded_model(synth_features)
    train_joined(wanted, Data(synth_log, synth_features), CASES["rounded"], 2)
    moves = [name for name in first if name.endswith(".moves")]
    for name in moves:
        assert first[name].any(), f"{name} did not move"
        torch.testing.assert_close(first[name], wanted.state_dict()[name], rtol=1e-2, atol=1e-3)
    assert len(moves) > 4


def test_rows_weigh_what_they_do_in_the_joined_batch(
    trained: dict[str, list[dict[str, Tensor]]],
) -> None:
    shares = [float(told["of three and of one row"]) for told in trained["share"]]
    assert shares == [0.75, 0.25] and workers.weight(7) == 1.0  # alone, all of them


def test_more_workers_than_rows_are_refused_before_training() -> None:
    refuse_too_many(3, 3)
    with pytest.raises(BadSettings, match=r"workers is 4, but there are 3 rows .* ask for 3"):
        refuse_too_many(4, 3)


def test_the_quality_of_one_worker_is_the_sum() -> None:
    quality = Quality()
    assert workers.total(quality) is quality  # alone, there is nothing to add


def _log_of(log: ClickLog, rows: int, folder: Path) -> ClickLog:
    """A log whose splits are the first rows of another's."""
    folder.mkdir()
    (folder / "schema.toml").write_text((Path(log.path) / "schema.toml").read_text())
    for split in ("train", "valid", "test"):
        table = pq.read_table(Path(log.path) / f"{split}.parquet")
        pq.write_table(table.slice(0, rows), folder / f"{split}.parquet")
    return ClickLog(str(folder))


def _work(rank: int, path: str, folder: str) -> None:
    probe.FEWEST, probe.STEPS = 1000, 2
    checkpoint.restore_weights = lambda run, file: None  # what training left is compared
    logs = {"uneven": str(Path(folder, "uneven"))}
    told = {case: _weights(logs.get(case, path), case, rank, Path(folder)) for case in CASES}
    told["share"] = {"of three and of one row": torch.tensor(workers.weight((3, 1)[rank]))}
    torch.save(told, Path(folder, f"{rank}.pt"))


def _weights(path: str, case: str, rank: int, folder: Path) -> dict[str, Tensor]:
    """A worker's own weights at the end; the evaluations are those of all workers."""
    features = Features.load(folder / "features")
    model: nn.Module = (rounded_model if case == "rounded" else small_model)(features)
    if rank:  # the first worker's weights are everyone's start
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    teacher = Teacher(features) if case == "taught" else None
    data, scratch = Data(ClickLog(path), features), folder / f"scratch_{case}"
    history = fit(model, data, CASES[case], scratch, teacher=teacher)
    assert teacher is None or teacher.scored == 4800, "each worker scores its own rows"
    evaluations = workers.gathered([entry["auc"] for entry in history])
    assert evaluations[0] == evaluations[1] and evaluations[0][-1] > 0.5
    return model.state_dict()


def test_what_the_first_worker_makes_all_have_and_its_mistakes_too(tmp_path: Path) -> None:
    assert workers.once(lambda: 7) == 7
    with pytest.raises(BudgetTooSmall, match="smallest plan needs 9"):
        workers.once(_too_small)
    in_two_workers(_once, tmp_path)
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == [f"by 0: {TOO_SMALL}"] * 2


TOO_SMALL = BudgetTooSmall(5, 9, ("user", 8), 1)


def _too_small() -> None:
    raise TOO_SMALL


def _once(rank: int, folder: Path) -> None:
    made = workers.once(lambda: f"by {rank}")
    try:
        workers.once(_too_small)
    except BudgetTooSmall as error:
        (folder / f"{rank}").write_text(f"{made}: {error}")


def test_tensors_of_any_strides_follow_the_first_workers(tmp_path: Path) -> None:
    in_two_workers(_follow, tmp_path)


def _follow(rank: int, folder: Path) -> None:
    numbers = torch.arange(6.0) + 10 * rank
    column = numbers[:3].clone().as_strided((3, 1), (1, 3))  # contiguous, as codes of rank 1 are
    turned = numbers.clone().view(2, 3).T
    workers.follow_first([column, turned])
    assert column[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert turned.T.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
