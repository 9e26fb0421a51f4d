"""Counting, vocabularies and batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedcomp.log.batches import Shuffled, in_order, read_rows
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.log.profile import profile
from embedcomp.log.rows import Rows
from embedcomp.log.synth import DAYS, _Teacher, synth
from embedcomp.log.vocabulary import NULL, RESERVED, UNKNOWN, Vocabulary, load, save
from tests.conftest import SCHEMA, WriteLog


def features_of(folder: Path, min_count: int = 1) -> tuple[ClickLog, Features]:
    log = ClickLog(str(folder))
    return log, Features.from_counts(log, count(log, log.pieces("train")), min_count)


def all_rows(log: ClickLog, features: Features) -> Rows:
    return Rows.concatenate(list(read_rows(log, features, log.pieces("train"))))


def test_rows_follow_falling_counts_after_unknown_and_null(write_log: WriteLog) -> None:
    _, features = features_of(write_log())
    user, item, tags = (f.vocabulary for f in features.ids)
    assert user.values.to_pylist() == ["a", "b"] and user.counts.tolist() == [0, 1, 2, 1]
    assert item.values.to_pylist() == [7, 8] and item.counts.tolist() == [0, 0, 3, 1]
    assert tags.values.to_pylist() == ["x", "y"] and tags.counts.tolist() == [0, 1, 2, 1]


def test_rare_ids_share_the_unknown_row(write_log: WriteLog) -> None:
    log, features = features_of(write_log(), min_count=2)
    assert features.ids[0].vocabulary.counts.tolist() == [1, 1, 2]
    assert all_rows(log, features).single[:, 0].tolist() == [2, UNKNOWN, 2, NULL]


def test_lists_become_bags_and_a_null_list_is_one_null(write_log: WriteLog) -> None:
    log, features = features_of(write_log())
    (bag,) = all_rows(log, features).bags
    assert bag.offsets.tolist() == [0, 2, 2, 3, 4]
    assert bag.values.tolist() == [RESERVED, RESERVED + 1, NULL, RESERVED]


def test_dense_columns_are_transformed_and_standardised(write_log: WriteLog) -> None:
    log, features = features_of(write_log())
    dense = all_rows(log, features).dense[:, 0]
    known = np.array([0.0, np.log(4.0), -np.log(4.0)])  # log1p keeps the sign
    np.testing.assert_allclose(dense[[0, 1, 3]], (known - known.mean()) / known.std(), rtol=1e-5)
    assert dense[2] == 0.0


def test_dense_ids_keep_their_numbers(write_log: WriteLog) -> None:
    schema = SCHEMA.replace("item = {}", "item = { dense_ids = true }")
    log, features = features_of(write_log(schema, item=[2, 0, 2, None]))
    assert all_rows(log, features).single[:, 1].tolist() == [2, 0, 2, 4]
    vocabulary = features.ids[1].vocabulary
    assert vocabulary.counts.tolist() == [1, 0, 2, 0, 1]
    assert vocabulary.encode(pa.array([-1, 3, 1])).tolist() == [3, 3, 1]


def test_counts_of_shards_add_up_to_those_of_the_whole(synth_log: ClickLog) -> None:
    pieces = synth_log.pieces("train") + synth_log.pieces("valid") + synth_log.pieces("test")
    whole, shards = count(synth_log, pieces), count(synth_log, pieces[2:])
    shards += count(synth_log, pieces[:1])
    shards += count(synth_log, pieces[1:2])
    assert (whole.rows, whole.positives) == (shards.rows, shards.positives)
    for name, ids in whole.ids.items():
        values, counts, _ = ids.ranked()
        assert shards.ids[name].ranked()[0].equals(values)
        assert np.array_equal(shards.ids[name].ranked()[1], counts)
    for name, sums in whole.dense.items():
        assert shards.dense[name].mean_and_scale() == sums.mean_and_scale()  # to the last bit


def test_counts_equal_a_plain_count_of_the_files(synth_log: ClickLog) -> None:
    found = count(synth_log, synth_log.pieces("train"))
    table = pq.read_table(f"{synth_log.path}/train.parquet")
    for name, ids in found.ids.items():
        column = table[name]
        values = column.to_pylist()
        if pa.types.is_list(column.type):
            values = [x for bag in values if bag is not None for x in bag]
        known = Counter(v for v in values if v is not None)
        assert dict(zip(*(x.tolist() for x in ids.ranked()[:2]), strict=True)) == known


@pytest.mark.parametrize("buffer_rows", [500, 3000, None])
def test_a_pass_gives_every_row_once_in_an_order_of_its_seed(
    synth_log: ClickLog, synth_features: Features, buffer_rows: int | None
) -> None:
    pieces = synth_log.pieces("train")

    shuffled = Shuffled(synth_log, synth_features, pieces, 256, buffer_rows)

    def passed(seed: int, skip: int = 0) -> list[np.ndarray]:
        stream = shuffled.batches((seed, 0), skip)
        return [np.column_stack([b.dense.numpy(), b.labels.numpy()]) for b in stream]

    first, again, other = passed(1), passed(1), passed(2)
    assert [len(b) for b in first[:-1]] == [256] * (len(first) - 1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    ordered = np.concatenate(
        [
            np.column_stack([b.dense.numpy(), b.labels.numpy()])
            for b in in_order(synth_log, synth_features, pieces, 1000)
        ]
    )
    same = [np.sort(np.concatenate(x), axis=0) for x in (first, other, [ordered])]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])
    resumed = passed(1, skip=5)
    assert all(np.array_equal(a, b) for a, b in zip(first[5:], resumed, strict=True))


def test_pieces_come_in_an_order_of_the_seed(synth_log: ClickLog, synth_features: Features) -> None:
    """Pieces that the buffer does not hold together begin with another one for each seed."""
    (whole,) = synth_log.pieces("train")
    pieces = [whole.part(start, start + 1200) for start in range(0, 9600, 1200)]
    shuffled = Shuffled(synth_log, synth_features, pieces, 256, buffer_rows=1200)
    prices = [next(iter(in_order(synth_log, synth_features, [p], 1200))).dense for p in pieces]
    begun = set()
    for seed in range(6):
        stream = shuffled.batches((seed,))
        seen = {float(price) for price in next(stream).dense[:, 0] if price}
        stream.close()
        begun |= {i for i, piece in enumerate(prices) if seen <= set(piece[:, 0].tolist())}
    assert len(begun) > 2


@pytest.mark.parametrize("rows", [70, 250, 300])
def test_so_many_rows_of_each_piece_are_read_wherever_the_reader_stops(
    synth_log: ClickLog,
    synth_features: Features,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole,) = synth_log.pieces("train")
    pieces = [whole.part(0, 1000), whole.part(5000, 9000)]
    found = list(in_order(synth_log, synth_features, pieces, 64, rows_per_piece=rows))
    monkeypatch.setattr("embedcomp.log.click_log.READ_ROWS", 100)
    chunks = list(in_order(synth_log, synth_features, pieces, 64, rows_per_piece=rows))
    heads = [whole.part(0, rows), whole.part(5000, 5000 + rows)]
    for batches in (found, chunks):
        read = torch.cat([batch.dense for batch in batches])
        wanted = [batch.dense for batch in in_order(synth_log, synth_features, heads, 64)]
        assert torch.equal(read, torch.cat(wanted))


def test_a_reader_that_stops_early_leaves_no_thread_behind(
    synth_log: ClickLog, synth_features: Features
) -> None:
    import threading

    before = set(threading.enumerate())
    for _ in range(5):
        stream = in_order(synth_log, synth_features, synth_log.pieces("train"), 10)
        next(stream)
        stream.close()
    begun = set(threading.enumerate()) - before
    for thread in begun:
        thread.join(timeout=2)
    assert not any(thread.is_alive() for thread in begun)


def test_vocabularies_come_back_from_their_files(
    tmp_path: Path, synth_log: ClickLog, synth_features: Features
) -> None:
    synth_features.save(tmp_path)
    back = Features.load(tmp_path)
    assert back.names == synth_features.names
    for mine, theirs in zip(synth_features.ids, back.ids, strict=True):
        assert theirs.vocabulary.values.equals(mine.vocabulary.values)
        assert np.array_equal(theirs.vocabulary.counts, mine.vocabulary.counts)
    first = all_rows(synth_log, synth_features)
    assert np.array_equal(all_rows(synth_log, back).single, first.single)


def test_row_numbers_come_back_as_row_numbers(tmp_path: Path) -> None:
    vocabulary = Vocabulary(pa.array([], pa.int64()), np.array([5, 4, 1, 2]), dense_ids=True)
    words = Vocabulary(pa.array(["b", "", "bc"]), np.array([1, 0, 9, 9, 3]))
    save([vocabulary, words], tmp_path / "v.parquet")
    back, others = load(tmp_path / "v.parquet")
    assert back.dense_ids and back.counts.tolist() == [5, 4, 1, 2] and back.type == pa.int64()
    assert others.values.equals(words.values) and others.counts.tolist() == [1, 0, 9, 9, 3]
    assert not others.dense_ids


def test_a_known_id_takes_few_bytes(tmp_path: Path) -> None:
    """Those below 2^31 four at most, wherever they lie, with their counts."""
    random = np.random.default_rng(0)
    ids = random.choice(1 << 31, 20_000, replace=False)
    counts = np.concatenate([[7, 0], np.sort(random.zipf(1.5, len(ids)))[::-1]])
    save([Vocabulary(pa.array(ids), counts)], tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").stat().st_size < 4.5 * len(ids)
    (back,) = load(tmp_path / "v.parquet")
    assert back.values.to_numpy().tolist() == ids.tolist()
    assert back.counts.tolist() == counts.tolist()


def test_splits_may_be_folders_and_globs(write_log: WriteLog) -> None:
    folder = write_log(SCHEMA.replace("train.parquet", "parts"))
    (folder / "parts").mkdir()
    for name in ("b", "a"):
        (folder / f"parts/{name}.parquet").write_bytes((folder / "train.parquet").read_bytes())
    assert ClickLog(str(folder)).rows("train") == 8
    assert ClickLog(f"file://{folder}").rows("train") == 8
    (folder / "schema.toml").write_text(SCHEMA.replace("train.parquet", "parts/a*"))
    assert ClickLog(str(folder)).rows("train") == 4


def test_the_profile_tells_nulls_and_tail(write_log: WriteLog) -> None:
    log = ClickLog(str(write_log()))
    found = profile(log, count(log, log.pieces("train")), "train")
    assert found["rows"] == 4 and found["positive_rate"] == 0.5
    assert found["categorical"]["user"]["nulls"] == 1
    assert found["categorical"]["tags"]["empty_bags"] == 1
    assert found["categorical"]["item"]["tail_mass"] == 1.0


def test_in_a_log_that_drifts_an_id_is_somebody_else_a_day_later() -> None:
    """A user's mean logit says much of his others of the same hour and nothing of those to come."""
    teacher = _Teacher(3000, np.random.default_rng(0), drift=True)

    def logits(when: float, seed: int) -> pd.Series:
        columns, found = teacher.draw(np.full(20_000, when), np.random.default_rng(seed))
        return pd.Series(found).groupby(columns["user_id"].to_pylist()).mean()

    now, again = logits(0.5, 1), logits(0.5, 2)
    later = logits(0.5 + 1 / (0.95 * DAYS), 3)  # when the same ids are handed on
    assert len(now.index.intersection(later.index)) > 0.9 * len(now) > 20
    assert now.corr(again) > 0.8 and abs(now.corr(later)) < 0.3


def test_the_splits_of_a_log_that_drifts_follow_each_other(tmp_path: Path) -> None:
    synth(tmp_path / "log", 6000, drift=True)
    train, valid = (
        pq.read_table(tmp_path / "log" / f"{split}.parquet").column("user_id").to_pylist()
        for split in ("train", "valid")
    )
    last, next_ones, half_a_day_later = set(train[-100:]), set(valid[:100]), set(valid[-100:])
    assert len(last & next_ones) > 2 * len(last & half_a_day_later)
