"""Counts of more ids than memory may hold are those of a count in memory, to the byte."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcomp.log import counts as counts_module
from embedcomp.log import ranking, stored
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import IdCounts, LogCounts, count
from embedcomp.log.features import VOCABULARIES, Features
from embedcomp.log.profile import profile
from embedcomp.log.stored import BUCKETS, COUNT, MERGING, VALUE, Store, bucket_of
from tests.conftest import SCHEMA

ROWS, GROUP = 20_000, 4_000
SMALL = 400_000  # bytes of memory, less than a tenth of what counting the log takes


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """Most of its ids are seen once or twice."""
    folder = tmp_path_factory.mktemp("long")
    random = np.random.default_rng(0)
    users = random.zipf(1.2, ROWS) % 15_000
    tags = [
        [f"t{tag}" for tag in random.integers(0, 10_000, n)] for n in random.integers(0, 4, ROWS)
    ]
    table = pa.table(
        {
            "label": (random.random(ROWS) < 0.3).astype(np.int8),
            "user": pa.array([f"u{user}" for user in users], mask=random.random(ROWS) < 0.01),
            "item": pa.array(random.integers(-(1 << 62), 1 << 62, ROWS) // (1 << 48)),
            "tags": tags,
            "price": random.random(ROWS),
        }
    )
    pq.write_table(table, folder / "train.parquet", row_group_size=GROUP)
    (folder / "schema.toml").write_text(SCHEMA)
    return ClickLog(str(folder))


def shuffled_back(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """What other processes do: called in another order, sent there and back, given in order."""
    found = {}
    for place in reversed(range(len(items))):
        sent, item = pickle.loads(pickle.dumps((work, items[place])))
        found[place] = pickle.loads(pickle.dumps(sent(item)))
    return [found[place] for place in range(len(items))]


@pytest.mark.parametrize(
    ("shards", "memory"), [(1, SMALL), (3, SMALL), (4, 2 * SMALL), (2, SMALL // 10)]
)
def test_vocabularies_are_the_same_to_the_byte(
    long_log: ClickLog, tmp_path: Path, shards: int, memory: int
) -> None:
    pieces = long_log.pieces("train")
    alone = count(long_log, pieces)
    store = Store(str(tmp_path / "counts"), memory)
    found = LogCounts.empty(long_log, store)
    for first in range(shards):
        part = count(long_log, pieces[first::shards], store)
        found += pickle.loads(pickle.dumps(part))
    assert all(ids.stored for ids in found.ids.values())
    for min_count in (1, 3):
        for name, counts in {"alone": alone, "stored": found}.items():
            features = Features.from_counts(long_log, counts, min_count, shuffled_back)
            features.save(tmp_path / f"{name}-{min_count}")
        for file in ("features.json", VOCABULARIES):
            one, other = (tmp_path / f"{name}-{min_count}" / file for name in ("alone", "stored"))
            assert one.read_bytes() == other.read_bytes()
    assert profile(long_log, found, "train") == profile(long_log, alone, "train")


def test_what_fits_into_memory_is_not_written(long_log: ClickLog, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "counts"), 1 << 30)
    found = count(long_log, long_log.pieces("train"), store)
    found += count(long_log, long_log.pieces("train"), store)
    Features.from_counts(long_log, found, 2)
    assert not (tmp_path / "counts").exists()


def test_what_is_gathered_and_added_up_stays_within_memory(
    long_log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), SMALL)
    held = []
    make_room = LogCounts.make_room

    def watched(found: LogCounts) -> None:
        make_room(found)
        held.append(found._held)

    monkeypatch.setattr(counts_module, "MERGE_VALUES", 1)
    monkeypatch.setattr(LogCounts, "make_room", watched)
    found = count(long_log, long_log.pieces("train"), store)
    assert max(held) <= store.gathered
    for ids in found.ids.values():
        sizes = ids.shares(lambda table: table.nbytes)
        assert len(sizes) > 1 and max(sizes) * MERGING <= 1.2 * SMALL


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=40)
def test_counts_are_those_of_plain_python(data: st.DataObject) -> None:
    """Whatever is put aside when, in shares of whatever size."""
    value = data.draw(
        st.sampled_from([st.integers(-3, 3), st.integers(-(1 << 63), (1 << 63) - 1), st.text()])
    )
    batches = data.draw(st.lists(st.lists(st.none() | value, max_size=30), max_size=6))
    aside = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
    memory, least = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3))
    kind = pa.array([x for one in batches for x in one]).type
    kind = pa.int64() if kind == pa.null() else kind
    with TemporaryDirectory() as folder:
        store = Store(folder, memory)
        found = IdCounts(kind, store)
        for batch, now in zip(batches, aside, strict=False):
            found.add_column(pa.array(batch, kind))
            if now:
                with store.writing() as writer:
                    found.put_aside(writer)
        known = Counter(x for one in batches for x in one if x is not None)
        order = sorted(known.items(), key=lambda item: (-item[1], item[0]))
        values, counts, rare = found.ranked(least)
        assert list(zip(values.to_pylist(), counts.tolist(), strict=True)) == [
            item for item in order if item[1] >= least
        ]
        assert rare == sum(n for n in known.values() if n < least)
        assert found.nulls == sum(one.count(None) for one in batches)
        times = sorted(Counter(known.values()).items(), reverse=True)
        assert found.frequencies().tolist() == [list(one) for one in times]


def test_what_is_too_rare_is_counted_together() -> None:
    found = IdCounts(pa.string())
    found.add_column(pa.array(["c", "a", "b", "a", "b", "a", "d", None]))
    values, counts, rare = found.ranked(3)
    assert (values.to_pylist(), counts.tolist(), rare) == (["a"], [3], 4)
    assert found.frequencies().tolist() == [[3, 1], [2, 1], [1, 2]]


def bucket_by_hand(value: int | str) -> int:
    mask = (1 << 64) - 1
    found = value & mask if isinstance(value, int) else 0
    if isinstance(value, str):
        for place, letter in enumerate(value.encode()):
            found += (letter + 1) * pow(0x9E3779B97F4A7C15, place % 4096 + 1, 1 << 64)
        found &= mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> shift)) * factor & mask
    return found >> 56


@pytest.mark.slow
@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1)) | st.lists(st.text()),
    st.integers(0, 3),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_the_bucket_of_an_id_is_the_same_anywhere(
    values: list[int] | list[str], skipped: int, cut: int
) -> None:
    kind = pa.string() if values and isinstance(values[0], str) else pa.int64()
    array = pa.array(values, kind).slice(min(skipped, len(values)))
    chunks = pa.chunked_array([array.slice(0, cut), array.slice(cut)], kind)
    assert bucket_of(chunks).tolist() == [bucket_by_hand(x) for x in values[skipped:]]


@pytest.mark.slow
def test_every_letter_of_a_long_id_counts() -> None:
    values = ["x" * place + "y" + "x" * (5000 - place) for place in range(0, 5000, 100)]
    assert bucket_of(pa.chunked_array([values])).tolist() == [bucket_by_hand(x) for x in values]


@pytest.mark.parametrize("write", [int, "user-{:d}".format])
def test_buckets_are_of_about_one_size(write: Callable[[int], object]) -> None:
    values = pa.chunked_array([[write(i) for i in range(256 * 400)]])
    sizes = np.bincount(bucket_of(values), minlength=BUCKETS)
    assert sizes.min() > 280 and sizes.max() < 520  # six standard deviations around 400


@pytest.mark.parametrize("least", [1, 50, 10**6])
def test_parts_hold_whole_buckets_and_are_read_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(stored, "PART_ROWS", least)
    values = pa.array(np.arange(3000) * 7)
    table = pa.table([values, pa.array(np.arange(3000))], [VALUE, COUNT])
    with Store(str(tmp_path), 1).writing() as writer:
        parts = writer.by_bucket(table)
    assert [part.first for part in parts] == [0, *(part.last + 1 for part in parts[:-1])]
    assert parts[-1].last == BUCKETS - 1
    buckets = bucket_of(table[VALUE])
    for first, last in ((0, BUCKETS - 1), (17, 17), (3, 100)):
        found = pa.concat_tables([p.of(first, last) for p in parts if p.first <= last])
        wanted = table.filter(pa.array((buckets >= first) & (buckets <= last)))
        assert found.sort_by(VALUE).equals(wanted)


@pytest.mark.slow
@given(st.data())
@settings(deadline=None)
def test_ranked_runs_are_merged_in_the_order_of_all(data: st.DataObject) -> None:
    ids = data.draw(st.dictionaries(st.text(max_size=3), st.integers(1, 3), max_size=40))
    owner = data.draw(st.lists(st.integers(0, 3), min_size=40, max_size=40))
    order = sorted(ids.items(), key=lambda item: (-item[1], item[0]))
    runs = []
    for run in range(4):
        mine = [item for item, whose in zip(order, owner, strict=False) if whose == run]
        size = data.draw(st.integers(1, 5))
        runs.append([_table(mine[start : start + size]) for start in range(0, len(mine) + 1, size)])
    found = [
        (value, times)
        for block in ranking.merged(runs)
        for value, times in zip(block[VALUE].to_pylist(), block[COUNT].to_pylist(), strict=True)
    ]
    assert found == order


def _table(items: Sequence[tuple[str, int]]) -> pa.Table:
    values, counts = [value for value, _ in items], [n for _, n in items]
    return pa.table([pa.array(values, pa.string()), pa.array(counts, pa.int64())], [VALUE, COUNT])


def test_a_merge_reads_one_block_of_a_run_at_a_time(tmp_path: Path) -> None:
    """And gives what is ready, so nobody holds all ids to have them in order."""
    read: list[tuple[int, int]] = []

    def run(number: int) -> Iterable[pa.Table]:
        for block in range(50):
            read.append((number, block))
            yield _table([(f"{block:02d}-{number}", 1)])

    merging = ranking.merged([run(0), run(1), run(2)])  # type: ignore[list-item]
    first = next(merging)
    assert first[VALUE].to_pylist() == ["00-0"] and len(read) <= 4
    assert sum(block.num_rows for block in merging) == 149
