"""Ids have one row, whoever looks them up: the compiled table, and Python where there is none."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedcomp.kernels import native
from embedcomp.log import known, vocabulary
from embedcomp.log.known import STRINGS, About, Known
from embedcomp.log.vocabulary import Vocabulary

LOOKED_UP = 400_000  # of each kind
pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not built")


def _numbers(random: np.random.Generator) -> tuple[pa.Array, pa.Array]:
    """Known ids, and those that are looked up: near, far, the outermost ones and nulls."""
    near, far = (
        random.integers(-(2**15), 2**15, 60_000),
        random.integers(-(2**63), 2**63 - 1, 60_000),
    )
    ends = np.array([0, -1, 2**31, 2**31 - 1, -(2**63), 2**63 - 1])
    kept = np.unique(np.concatenate([near, far, ends]))
    random.shuffle(kept)
    others = random.integers(-(2**16), 2**16, LOOKED_UP // 2)
    asked = np.concatenate([random.choice(kept, LOOKED_UP // 2), others])
    return pa.array(kept), pa.array(asked, mask=random.random(len(asked)) < 0.05)


def _strings(random: np.random.Generator) -> tuple[pa.Array, pa.Array]:
    """Likewise, of all lengths from none, with letters of one to four bytes."""
    letters = np.array(list("abc ü中😀\x00"))

    def drawn(count: int) -> list[str]:
        lengths = random.integers(0, 12, count)
        return ["".join(random.choice(letters, length)) for length in lengths]

    kept = list(dict.fromkeys(drawn(40_000)))
    asked = [*random.choice(np.array(kept, object), LOOKED_UP - 40_000), *drawn(40_000)]
    return pa.array(kept, pa.string()), pa.array(asked, mask=random.random(len(asked)) < 0.05)


@pytest.mark.parametrize("draw", [_numbers, _strings])
def test_an_id_has_the_row_of_its_place(draw: object, monkeypatch: pytest.MonkeyPatch) -> None:
    values, asked = draw(np.random.default_rng(0))  # type: ignore[operator]
    vocabulary = Vocabulary(values, np.ones(len(values) + 2, np.int64))
    rows = {value: row for row, value in enumerate(values.to_pylist(), 2)} | {None: 1}
    wanted = np.array([rows.get(value, 0) for value in asked.to_pylist()], np.int32)
    assert (wanted > 1).mean() > 0.3 and (wanted == 0).any() and (wanted == 1).any()
    assert np.array_equal(vocabulary.encode(asked), wanted)
    assert np.array_equal(vocabulary.encode(asked.slice(7, 9001)), wanted[7 : 9001 + 7])
    again = pickle.loads(pickle.dumps(vocabulary))
    monkeypatch.setattr(native, "library", lambda: None)
    assert np.array_equal(again.encode(asked), wanted)


def test_a_hash_that_strings_share_is_not_enough() -> None:
    text = np.frombuffer(b"one", np.uint8).copy()
    table = Known.of(pa.array(["one"]), About(STRINGS, 1, 2, 0, 1))
    assert table.rows_of(pa.array(["one"])).tolist() == [2]
    other = Known(table.about, table.slots, text, table.offsets)
    text[:] = np.frombuffer(b"two", np.uint8)  # the slot still has the hash of the first
    assert other.rows_of(pa.array(["one"])).tolist() == [0]


def test_row_numbers_are_their_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(pa.array([], pa.int64()), np.ones(102, np.int64), dense_ids=True)
    asked = pa.array([0, 99, 100, 101, -1, None, 2**40, -(2**63)])
    wanted = [0, 99, 100, 100, 100, 101, 100, 100]
    assert vocabulary.encode(asked).tolist() == wanted
    monkeypatch.setattr(native, "library", lambda: None)
    assert pickle.loads(pickle.dumps(vocabulary)).encode(asked).tolist() == wanted


def test_tables_come_back_from_their_file(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    drawn = [draw(random) for draw in (_numbers, _strings)]
    tables = [Vocabulary(v, np.ones(len(v) + 2, np.int64)).known for v, _ in drawn]
    assert tables[0] is not None and tables[1] is not None
    known.save([tables[0], tables[1]], tmp_path / "known")
    for (_, asked), was, found in zip(drawn, tables, known.load(tmp_path / "known"), strict=True):
        assert was is not None and found.about == was.about
        assert not found.slots.flags.writeable  # it is mapped
        assert np.array_equal(found.rows_of(asked), was.rows_of(asked))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_table_of_few_ids_has_room_for_an_unknown_one(number: int) -> None:
    about = About(STRINGS, number, 1, 0, 9)
    table = Known.of(pa.array([f"id {i}" for i in range(number)], pa.string()), about)
    asked = pa.array(["id 0", "id 2", "other", None, ""])
    first, third = (row if row <= number else 0 for row in (1, 3))
    assert table.rows_of(asked).tolist() == [first, third, 0, 9, 0]


def test_vocabularies_are_opened_without_reading_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    drawn = [draw(random) for draw in (_numbers, _strings)]
    counts = [random.integers(0, 9, len(values) + 2) for values, _ in drawn]
    made = [Vocabulary(v, c) for (v, _), c in zip(drawn, counts, strict=True)]
    made.append(Vocabulary(pa.array([], pa.int64()), np.arange(12), dense_ids=True))
    file, table = tmp_path / "vocabularies", tmp_path / "cache" / "table"
    vocabulary.save(made, file)
    vocabulary.opened(file, table)
    read: list[Path] = []
    load = vocabulary.load
    monkeypatch.setattr(vocabulary, "load", lambda f: (read.append(f), load(f))[1])
    found = vocabulary.opened(file, table)
    for one, was in zip(found, made, strict=True):
        assert (one.rows, one.type, one.dense_ids) == (was.rows, was.type, was.dense_ids)
        assert (one.unknown_row, one.null_row) == (was.unknown_row, was.null_row)
    for one, was, (_, asked) in zip(found, made, drawn, strict=False):
        assert np.array_equal(one.encode(asked), was.encode(asked))
    assert not read
    for one, was in zip(found, made, strict=True):
        again = pickle.loads(pickle.dumps(one))
        assert one.values == was.values and np.array_equal(one.counts, was.counts)
        assert again.values == was.values and np.array_equal(again.counts, was.counts)
    assert len(read) == 1


@pytest.mark.parametrize("damage", ["cut short", "no file", "unwritable"])
def test_a_table_that_is_of_no_use_is_made_again(damage: str, tmp_path: Path) -> None:
    values = pa.array([5, 3, 8])
    vocabulary.save([Vocabulary(values, np.ones(5, np.int64))], tmp_path / "vocabularies")
    table = tmp_path / "cache" / "table"
    (found,) = vocabulary.opened(tmp_path / "vocabularies", table)
    if damage == "cut short":
        table.write_bytes(table.read_bytes()[:-1])
    else:
        table.unlink()
    if damage == "unwritable":
        table.parent.rmdir()
        table.parent.write_text("a file in the folder's place")
    (found,) = vocabulary.opened(tmp_path / "vocabularies", table)
    assert found.encode(pa.array([3, 9, None])).tolist() == [3, 0, 1]
    assert (damage == "unwritable") == (not table.exists())


@contextmanager
def a_full_disk() -> Iterator[None]:
    """No file can be written: at its first byte, the kernel says no to this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_no_table_can_be_written_ids_are_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, table = tmp_path / "v.parquet", tmp_path / "cache" / "known.safetensors"
    vocabulary.save([Vocabulary(pa.array(["a", "b"]), np.ones(4, np.int64))], file)
    with a_full_disk():
        (found,) = vocabulary.opened(file, table)
    assert found.encode(pa.array(["b", "c", None])).tolist() == [3, 0, 1]
    assert "cannot be written" in caplog.text and str(table) in caplog.text
    assert not list(table.parent.iterdir()), "half a table was left"


def test_tables_that_nobody_opens_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = Vocabulary(pa.array([1]), np.ones(3, np.int64)).known
    assert table is not None
    old, new = known.cached("a" * 64), known.cached("b" * 64)
    for file in (old, new):
        known.save([table], file)
        os.utime(file, (0, 0))
    known.load(new)
    known.cached("c" * 64)
    assert not old.exists() and new.exists()


def test_tables_of_few_ids_hold_all_of_them() -> None:
    random = np.random.default_rng(3)
    for number in range(1, 9):
        for _ in range(50):  # slots are searched from the last one on to the first
            ids = random.choice(10_000, number, replace=False)
            for values in (pa.array(ids), pa.array([f"{id}" for id in ids])):
                found = Vocabulary(values, np.ones(number + 2, np.int64))
                assert found.encode(values).tolist() == list(range(2, number + 2))
