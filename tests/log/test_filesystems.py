"""A log is read from any filesystem, however many files it has: listed at once, opened once."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from embedcomp.errors import BadLog, BadSettings
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import READ_ROWS, ClickLog, Piece
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from tests.conftest import COLUMNS, SCHEMA, WriteLog

FILES = 40
MANY = SCHEMA.replace('"train.parquet"', '"day=*/*.parquet"')


class Watched(pafs.FSSpecHandler):  # type: ignore[misc]
    """Counts what is asked of a filesystem."""

    def __init__(self) -> None:
        super().__init__(MemoryFileSystem())
        self.asked: Counter[str] = Counter()

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        self.asked["lists"] += 1
        return super().get_file_info_selector(selector)

    def open_input_file(self, path: str) -> Any:
        self.asked["opens"] += 1
        return super().open_input_file(path)


def write_many(filesystem: pafs.FileSystem, root: str) -> None:
    """FILES files of the four rows, in a folder each."""
    for number in range(FILES):
        folder = f"{root}/day={number:03d}"
        filesystem.create_dir(folder, recursive=True)
        pq.write_table(pa.table(COLUMNS), f"{folder}/part.parquet", filesystem=filesystem)
    with filesystem.open_output_stream(f"{root}/schema.toml") as stream:
        stream.write(MANY.encode())


def counted(log: ClickLog) -> dict[str, list[Any]]:
    found = count(log, log.pieces("train"))
    return {name: [*map(list, ids.ranked()[:2]), ids.nulls] for name, ids in found.ids.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_many(pafs.LocalFileSystem(), str(tmp_path / "log"))
    return tmp_path / "log"


def test_a_log_is_the_same_on_every_filesystem(root: Path) -> None:
    wanted = counted(ClickLog(str(root)))
    write_many(pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())), "/bucket/log")
    mock = pafs.FileSystem.from_uri("mock:///")[0]
    write_many(mock, "log")
    logs = [
        ClickLog(f"file://{root}"),
        ClickLog(f"file://{root}/"),
        ClickLog("memory://bucket/log"),
        ClickLog("log", filesystem=mock),
        ClickLog("", filesystem=pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())),
    ]
    for log in logs:
        assert log.rows("train") == 4 * FILES
        assert counted(log) == wanted
        assert [log.relative(file) for file in log.files("train")[:2]] == [
            "day=000/part.parquet",
            "day=001/part.parquet",
        ]


def test_a_log_and_what_is_known_of_it_travel_to_other_processes(root: Path) -> None:
    subtree = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    log = ClickLog("", filesystem=subtree)
    types = log.types
    for file in root.glob("day=*/*.parquet"):
        file.unlink()
    assert pickle.loads(pickle.dumps(log)).types == types


def test_a_url_that_nothing_knows_is_refused() -> None:
    with pytest.raises(BadSettings, match=r"nowhere://bucket/log cannot be opened .*fsspec"):
        ClickLog("nowhere://bucket/log")


def test_many_files_are_listed_at_once_and_their_footers_read_once() -> None:
    watched = Watched()
    filesystem = pafs.PyFileSystem(watched)
    write_many(filesystem, "/many/log")
    log = ClickLog("/many/log", filesystem=filesystem)
    watched.asked.clear()
    pieces = log.pieces("train")
    assert watched.asked == {"lists": 1, "opens": FILES}
    assert pieces == log.pieces("train") and log.rows("train") == 4 * FILES
    assert watched.asked == {"lists": 3, "opens": FILES}
    log.stamp(["train"])
    assert watched.asked["opens"] == FILES


def test_a_file_that_was_written_anew_is_looked_at_again(root: Path) -> None:
    log = ClickLog(str(root))
    assert log.rows("train") == 4 * FILES
    table = pa.table(COLUMNS)
    pq.write_table(pa.concat_tables([table, table]), root / "day=000/part.parquet")
    assert log.rows("train") == 4 * FILES + 4
    (root / "day=001/part.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(BadLog, match=r"001.* is not a readable Parquet file"):
        log.rows("train")


def test_the_first_broken_file_of_many_is_named(root: Path) -> None:
    for number in (31, 7):
        (root / f"day={number:03d}/part.parquet").write_bytes(b"")
    with pytest.raises(BadLog, match="day=007"):
        ClickLog(str(root)).pieces("train")


def test_a_fingerprint_is_of_the_schema_and_all_footers(root: Path) -> None:
    """As one JSON text, though it is never held whole."""
    log = ClickLog(str(root))
    footers = [pq.read_metadata(file).to_dict() for file in log.files("train")]
    text = json.dumps([log.schema.model_dump(), {"train": footers}], default=str)
    assert log.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert log.fingerprint(["train"]) == log.fingerprint()


def test_only_rows_that_are_asked_for_are_decoded(
    write_log: WriteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_log()
    table = pa.concat_tables([pa.table(COLUMNS)] * 5000)
    pq.write_table(table, folder / "train.parquet")
    log = ClickLog(str(folder))
    features = Features.from_counts(log, count(log, log.pieces("train")), 1)
    sizes = []
    read = pq.ParquetFile.iter_batches

    def watched(self: pq.ParquetFile, size: int, **options: Any) -> Any:
        sizes.append(size)
        return read(self, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    (piece,) = log.pieces("train")
    found = list(in_order(log, features, [piece], 10, rows_per_piece=25))
    assert [len(batch) for batch in found] == [10, 10, 5] and sizes == [25]
    assert sum(batch.num_rows for batch in log.read(Piece("train", piece.file, 0, 7, 100))) == 7
    assert sizes[-1] == 107 < READ_ROWS
