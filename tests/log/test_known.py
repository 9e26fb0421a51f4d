"""Ids have one row, whoever looks them up: the compiled table, and Python where there is none."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from embedcomp.kernels import native
from embedcomp.log import known, vocabulary
from embedcomp.log.known import NUMBERS, STRINGS, About, Known, Rising
from embedcomp.log.vocabulary import Vocabulary
from embedcomp.support.mapped import mapped_with_metadata

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


@pytest.mark.slow
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
    other = Known(table.about, table.codes, table.starts, text, table.texts)
    text[:] = np.frombuffer(b"two", np.uint8)  # the code still has the hash of the first
    assert other.rows_of(pa.array(["one"])).tolist() == [0]


def test_row_numbers_are_their_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(pa.array([], pa.int64()), np.ones(102, np.int64), dense_ids=True)
    asked = pa.array([0, 99, 100, 101, -1, None, 2**40, -(2**63)])
    wanted = [0, 99, 100, 100, 100, 101, 100, 100]
    assert vocabulary.encode(asked).tolist() == wanted
    monkeypatch.setattr(native, "library", lambda: None)
    assert pickle.loads(pickle.dumps(vocabulary)).encode(asked).tolist() == wanted


@pytest.mark.slow
def test_tables_come_back_from_their_file(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    drawn = [draw(random) for draw in (_numbers, _strings)]
    tables = [Vocabulary(v, np.ones(len(v) + 2, np.int64)).known for v, _ in drawn]
    assert tables[0] is not None and tables[1] is not None
    known.save([tables[0], tables[1]], tmp_path / "known")
    for (_, asked), was, found in zip(drawn, tables, known.load(tmp_path / "known"), strict=True):
        assert was is not None and found.about == was.about
        assert not found.codes.flags.writeable  # it is mapped
        assert np.array_equal(found.rows_of(asked), was.rows_of(asked))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_table_of_few_ids_has_room_for_an_unknown_one(number: int) -> None:
    about = About(STRINGS, number, 1, 0, 9)
    table = Known.of(pa.array([f"id {i}" for i in range(number)], pa.string()), about)
    asked = pa.array(["id 0", "id 2", "other", None, ""])
    first, third = (row if row <= number else 0 for row in (1, 3))
    assert table.rows_of(asked).tolist() == [first, third, 0, 9, 0]


@pytest.mark.slow
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


SAID = {  # of a file's first column, which its arrays do not fit
    "more ids": {"ids": 4},
    "fewer ids than none": {"ids": -1},
    "a wider range": {"span": 1 << 20},
    "a range beyond 64 bits": {"span": 1 << 64},
    "another kind": {"kind": "strings"},
    "no kind": {"kind": "letters"},
    "half an id": {"ids": 2.5},
    "half a range": {"span": 4.5},
    "a word that is not known": {"slots": 12},
}


@pytest.mark.parametrize("damage", ["cut short", "no file", "unwritable", "no columns", *SAID])
def test_a_table_that_is_of_no_use_is_made_again(damage: str, tmp_path: Path) -> None:
    values = pa.array([5, 3, 8])
    vocabulary.save([Vocabulary(values, np.ones(5, np.int64))], tmp_path / "vocabularies")
    table = tmp_path / "cache" / "table"
    (found,) = vocabulary.opened(tmp_path / "vocabularies", table)
    if damage == "cut short":
        table.write_bytes(table.read_bytes()[:-1])
    elif damage in SAID or damage == "no columns":
        arrays, metadata = mapped_with_metadata(table)
        (about,) = json.loads(metadata[known.COLUMNS])
        said = {known.COLUMNS: json.dumps([about | SAID.get(damage, {})])}
        save_file({n: a.copy() for n, a in arrays.items()}, table, said if damage in SAID else {})
        before = table.read_bytes()
    else:
        table.unlink()
    if damage == "unwritable":
        table.parent.rmdir()
        table.parent.write_text("a file in the folder's place")
    (found,) = vocabulary.opened(tmp_path / "vocabularies", table)
    assert found.encode(pa.array([3, 9, None])).tolist() == [3, 0, 1]
    assert (damage == "unwritable") == (not table.exists())
    assert damage not in SAID or table.read_bytes() != before


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
        for _ in range(50):
            ids = random.choice(10_000, number, replace=False)
            for values in (pa.array(ids), pa.array([f"{id}" for id in ids])):
                found = Vocabulary(values, np.ones(number + 2, np.int64))
                assert found.encode(values).tolist() == list(range(2, number + 2))


def _table(ids: np.ndarray) -> Known:
    return Known.of(pa.array(ids), About(NUMBERS, len(ids), 2, 0, 1))


LAST = 2**63 - 1
TOLD = {  # ids that lie in some order, and the bits of their range
    "one": ([7], 1),
    "the outermost": ([-LAST - 1, LAST], 64),
    "the outermost and between": ([LAST, -1, 0, -LAST - 1, 2**31, -(2**31) - 1], 64),
    "all of a byte": (range(-128, 128), 8),
    "all but one of a byte": ([*range(-128, 5), *range(6, 128)], 8),
    "consecutive": (range(10**12, 10**12 + 40_000), 16),
    "even": (range(0, 80_000, 2), 17),
    "multiples of 2^20": (range(0, 40_000 << 20, 1 << 20), 36),
    "multiples of 2^48": (range(-(1 << 63), 1 << 63, 1 << 48), 64),
    "multiples that a factor of the hash undoes": (
        [
            ((i * pow(0x9E3779B97F4A7C15, -1, 1 << 64) + LAST + 1) % (1 << 64)) - LAST - 1
            for i in range(40_000)
        ],
        64,
    ),
    "clusters": ([i << 40 | j for i in range(200) for j in range(200)], 48),
}


@pytest.mark.parametrize("name", TOLD)
def test_ids_of_any_shape_are_told_from_all_their_neighbours(name: str) -> None:
    kept, bits = TOLD[name]
    ids = np.random.default_rng(0).permutation(np.array(kept, np.int64))
    table = _table(ids)
    assert table.about.hash_bits == bits
    near = {*(id + d for id in kept for d in (-3, -2, -1, 1, 2, 3)), *(id ^ 1 << 40 for id in kept)}
    wrapped = {id % 2**64 for id in [*near, -LAST - 1, LAST, 0, -1]}
    asked = [id - 2**64 if id > LAST else id for id in wrapped]
    rows = {id: row for row, id in enumerate(ids.tolist(), 2)}
    assert table.rows_of(pa.array(ids)).tolist() == list(range(2, len(ids) + 2))
    wanted = [rows.get(id, 0) for id in asked]
    assert table.rows_of(pa.array(asked)).tolist() == wanted
    assert table.rows_of(pa.array(asked[:1])).tolist() == wanted[:1]
    largest = max(_sizes(table))
    assert largest <= 20, "a hash that is no better than none"


def test_small_ranges_are_told_apart_wholly() -> None:
    random = np.random.default_rng(4)
    for _ in range(400):
        first, length = int(random.integers(-500, 500)), int(random.integers(1, 300))
        ids = first + random.choice(length, int(random.integers(0, length + 1)), replace=False)
        rows = {id: row for row, id in enumerate(ids.tolist(), 2)}
        asked = range(first - 70, first + length + 70)
        wanted = [rows.get(id, 0) for id in asked]
        assert _table(ids).rows_of(pa.array(asked, pa.int64())).tolist() == wanted


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 2**40, 40), (-LAST - 1, LAST, 64)])
def test_an_id_takes_little_more_than_the_bits_of_its_range(low: int, high: int, bits: int) -> None:
    ids = np.unique(np.random.default_rng(5).integers(low, high, 200_000))
    size = sum(array.nbytes for array in _table(ids).arrays.values())
    assert size <= (bits + 4.3) / 8 * len(ids)


def test_a_string_takes_few_bytes_besides_its_letters() -> None:
    letters = np.random.default_rng(6).integers(97, 123, (100_000, 20), np.uint8)
    values = pa.array([bytes(row).decode() for row in letters])
    table = Known.of(values, About(STRINGS, len(values), 2, 0, 1))
    assert sum(array.nbytes for array in table.arrays.values()) <= 25.3 * len(values)


def _packed(numbers: np.ndarray, place: int, bits: int) -> int:
    whole = int.from_bytes(numbers.tobytes(), "little")
    return whole >> place * bits & (1 << bits) - 1


def _read(rising: Rising, count: int) -> list[int]:
    """Numbers, from their bytes."""
    size = 4 + 4 * rising.bits
    blocks = [rising.blocks[i : i + size] for i in range(0, len(rising.blocks) - size, size)]
    found = [
        int(block[:4].view("<u4")[0]) + _packed(block[4:], i, rising.bits)
        for block in blocks
        for i in range(32)
    ]
    return found[:count]


def _sizes(table: Known) -> list[int]:
    """Ids of each bucket."""
    starts = _read(table.starts, table.about.buckets + 1)
    return [end - start for start, end in pairwise(starts)]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("most", [0, 1, 200, 2**20])
def test_numbers_that_never_fall_are_packed_whole(count: int, most: int) -> None:
    steps = np.random.default_rng(7).integers(0, most, count, endpoint=True)
    numbers = np.cumsum(steps).astype(np.uint32)
    assert _read(Rising.of(numbers), count) == numbers.tolist()
    wide = np.array([0] * 63 + [2**32 - 1] * 2, np.uint32)  # the second block is the widest
    assert _read(Rising.of(wide), 65) == wide.tolist()


def test_tables_are_as_other_versions_read_them() -> None:
    """A change of this needs another FOLDER."""
    ids = np.unique(np.random.default_rng(8).integers(-1000, 2**33, 500))
    table, whole = _table(ids), 1 << 64
    about = table.about
    starts = _read(table.starts, about.buckets + 1)
    codes = [_packed(table.codes, i, about.code_bits) for i in range(len(ids))]
    bits = (whole - 1) << (64 - about.hash_bits) & (whole - 1)
    for place, id in enumerate(ids.tolist()):
        x = id - about.smallest << 64 - about.hash_bits
        for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
            x = x * factor % whole
            x ^= x >> (about.hash_bits + 1) // 2 & bits
        x = x * 0xBF58476D1CE4E5B9 % whole
        bucket, left = divmod(x * about.buckets, whole)
        wanted = (left * about.remainders // whole) * len(ids) + place
        assert wanted in codes[starts[bucket] : starts[bucket + 1]]
    for start, end in pairwise(starts):
        assert codes[start:end] == sorted(codes[start:end])


@pytest.mark.slow
@pytest.mark.parametrize("draw", [_numbers, _strings])
@pytest.mark.parametrize("damage", ["ones", "mixed codes", "mixed starts", "starts", "texts"])
def test_whatever_a_table_holds_nothing_is_read_beyond_it(draw: object, damage: str) -> None:
    random = np.random.default_rng(9)
    values, asked = draw(random)  # type: ignore[operator]
    table = Vocabulary(values, np.ones(len(values) + 2, np.int64)).known
    if damage == "ones":
        table.codes[:] = table.starts.blocks[:] = table.texts.blocks[:] = 255
    elif damage.startswith("mixed"):
        random.shuffle(table.arrays[damage.split()[1]])
    else:
        rising = getattr(table, damage)
        blocks = rising.blocks[: -known.BEYOND].reshape(-1, 4 + 4 * rising.bits)
        blocks[:, 3] += 64  # all numbers are 2^30 more
    rows = table.rows_of(asked.slice(0, 20_000))
    assert rows.min() >= 0 and rows.max() < len(values) + 2
