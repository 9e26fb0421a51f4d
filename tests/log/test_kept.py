"""Kept counts: a day added to those that were counted gives what all days give at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from embedcomp.errors import BadLog
from embedcomp.log import kept
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import VOCABULARIES, Features
from embedcomp.log.kept import KeptCounts, counted, entries, forget
from embedcomp.log.stored import Store
from tests.conftest import SCHEMA

DAYS = SCHEMA.replace('"train.parquet"', '"day=*/*.parquet"')
MEMORY = 1 << 28


def write_day(log: Path, day: int, seed: int | None = None, rows: int = 3000) -> Path:
    """A day of two row groups; most of its ids are seen on other days too."""
    random = np.random.default_rng(day if seed is None else seed)
    folder = log / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    users = [f"u{i}" for i in random.zipf(1.3, rows) % 1000]
    table = pa.table(
        {
            "label": random.integers(0, 2, rows),
            "user": pa.array(users, mask=random.random(rows) < 0.1),
            "item": random.integers(0, 500, rows),
            "tags": [["x", "y"][: random.integers(0, 3)] for _ in range(rows)],
            "price": random.random(rows),
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=rows // 2)
    (log / "schema.toml").write_text(DAYS)
    return folder / "a.parquet"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_day(tmp_path / "log", 1)
    return tmp_path / "log"


def saved(log: Path, place: Path, counts: str = "", memory: int = MEMORY) -> tuple[bytes, bytes]:
    """What a count of the log makes of it."""
    clicks = ClickLog(str(log))
    with counted(clicks, "train", memory, counts) as found:
        Features.from_counts(clicks, found, 2).save(place)
    return (place / "features.json").read_bytes(), (place / VOCABULARIES).read_bytes()


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files of logs, as they are opened."""
    names: list[str] = []
    stream = ClickLog._stream

    def watched(self: ClickLog, file: str) -> pa.NativeFile:
        names.append(self.relative(file))
        return stream(self, file)

    monkeypatch.setattr(ClickLog, "_stream", watched)
    return names


@pytest.mark.parametrize("memory", [MEMORY, 200_000])
@pytest.mark.parametrize("gone", ["deleted", "unreadable"])
def test_a_day_is_added_without_the_days_before(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, gone: str
) -> None:
    counts = str(tmp_path / "counts")
    whole = shutil.copytree(log, tmp_path / "whole")
    write_day(whole, 2)
    wanted = saved(whole, tmp_path / "wanted")

    first = saved(log, tmp_path / "first", counts, memory)
    assert first == saved(log, tmp_path / "alone") != wanted
    old = log / "day=1/a.parquet"
    listed = old.stat()
    old.unlink()
    if gone == "unreadable":
        old.write_bytes(bytes(listed.st_size))
        os.utime(old, ns=(listed.st_atime_ns, listed.st_mtime_ns))
    names = opened_files(monkeypatch)
    write_day(log, 2)
    assert saved(log, tmp_path / "both", counts, memory) == wanted
    assert set(names) == {"day=2/a.parquet"}
    names.clear()
    assert saved(log, tmp_path / "again", counts, memory) == wanted
    assert names == []


def test_counts_may_be_kept_at_a_url(log: Path, tmp_path: Path) -> None:
    url = "memory://bucket/counts"
    try:
        saved(log, tmp_path / "first", url)
        write_day(log, 2)
        assert saved(log, tmp_path / "both", url) == saved(log, tmp_path / "wanted")
        assert [entry.rows for entry in entries(url)] == [3000, 3000]
        assert len(forget(url, "*")) == 2 and entries(url) == []
    finally:
        MemoryFileSystem().rm("/bucket", recursive=True)


def test_a_window_moves_over_the_days(log: Path, tmp_path: Path) -> None:
    counts = str(tmp_path / "counts")
    write_day(log, 2)
    saved(log, tmp_path / "first", counts)
    (log / "day=1/a.parquet").unlink()
    write_day(log, 3)
    gone = forget(counts, "day=1/*")
    assert [entry.file for entry in gone] == ["day=1/a.parquet"]
    found = saved(log, tmp_path / "found", counts)
    assert [entry.file for entry in entries(counts)] == ["day=2/a.parquet", "day=3/a.parquet"]
    assert found == saved(log, tmp_path / "wanted")


def test_a_file_that_was_written_anew_is_counted_anew(log: Path, tmp_path: Path) -> None:
    counts = str(tmp_path / "counts")
    before = saved(log, tmp_path / "first", counts)
    write_day(log, 1, seed=5)
    found = saved(log, tmp_path / "found", counts)
    assert found == saved(log, tmp_path / "wanted") != before
    assert len(entries(counts)) == 1


def test_the_stamp_is_that_of_what_will_be_kept(log: Path, tmp_path: Path) -> None:
    def kept_counts() -> KeptCounts:
        return KeptCounts(str(tmp_path / "counts"), ClickLog(str(log)), "train", MEMORY)

    before = kept_counts()
    before.add(before.fresh())
    stamp = kept_counts().stamp()
    write_day(log, 2)
    new = kept_counts().stamp()
    assert new != stamp
    saved(log, tmp_path / "found", str(tmp_path / "counts"))
    assert kept_counts().stamp() == new
    (log / "day=1/a.parquet").unlink()
    assert kept_counts().stamp() == new
    forget(str(tmp_path / "counts"), "day=1/*")
    assert kept_counts().stamp() != new


def test_a_count_that_was_cut_short_is_made_again(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left is not counted, and is deleted."""
    counts = tmp_path / "counts"

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kept, "write_whole", cut)
        saved(log, tmp_path / "cut", str(counts))
    assert [*counts.rglob("*.counts")] and entries(str(counts)) == []
    assert saved(log, tmp_path / "found", str(counts)) == saved(log, tmp_path / "wanted")
    assert len([*counts.rglob("*.counts")]) == 1


def test_pieces_may_be_counted_by_several(log: Path, tmp_path: Path) -> None:
    write_day(log, 2)
    clicks = ClickLog(str(log))
    found = KeptCounts(str(tmp_path / "counts"), clicks, "train", MEMORY)
    found.add(found.fresh(), map, lambda pieces: [list(pieces[i::3]) for i in range(3)])
    total = found.total(Store(str(tmp_path / "scratch"), MEMORY))
    alone = count(clicks, clicks.pieces("train"))
    assert (total.rows, total.positives) == (alone.rows, alone.positives)
    for name, ids in alone.ids.items():
        assert total.ids[name].ranked().values.equals(ids.ranked().values)
        assert (total.ids[name].nulls, total.ids[name].empty_bags) == (ids.nulls, ids.empty_bags)
    assert total.dense["price"].mean_and_scale() == alone.dense["price"].mean_and_scale()


@pytest.fixture
def refused(log: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    counts = str(tmp_path / "counts")
    saved(log, tmp_path / "first", counts)
    yield log, counts


def test_counts_of_another_log_are_refused(refused: tuple[Path, str], tmp_path: Path) -> None:
    log, counts = refused
    other = shutil.copytree(log, tmp_path / "other")
    with pytest.raises(BadLog, match=r"counts of the split 'train' of .*/log, not of .*/other"):
        saved(other, tmp_path / "found", counts)


def test_counts_of_other_columns_are_refused(refused: tuple[Path, str], tmp_path: Path) -> None:
    log, counts = refused
    (log / "schema.toml").write_text(DAYS.replace("tags = {}", ""))
    with pytest.raises(BadLog, match=r"counts of other columns \(day=1/a.parquet\)"):
        saved(log, tmp_path / "found", counts)


def test_damaged_counts_are_told(refused: tuple[Path, str], tmp_path: Path) -> None:
    log, counts = refused
    (file,) = Path(counts).rglob("*.counts")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadLog, match="holds no readable counts"):
        saved(log, tmp_path / "found", counts)
    (entry,) = Path(counts).rglob("entry.json")
    entry.write_text(entry.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(BadLog, match="is of format 9, and this embedcomp reads 1"):
        saved(log, tmp_path / "found", counts)
    entry.write_text("{")
    with pytest.raises(BadLog, match="is no readable entry of counts"):
        saved(log, tmp_path / "found", counts)
