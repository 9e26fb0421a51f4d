"""Every wrong log is refused with one sentence that names file, column and rows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcomp.errors import BadLog, BadSchema, EmbedcompError
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from tests.conftest import SCHEMA, WriteLog


def read(folder: object) -> None:
    log = ClickLog(str(folder))
    count(log, log.pieces("train"))


def test_a_missing_column_is_named_with_the_file_and_its_rows(write_log: WriteLog) -> None:
    with pytest.raises(BadLog, match=r"train\.parquet \(4 rows\) has no column 'item'"):
        read(write_log(item=None))


def test_a_label_that_is_neither_0_nor_1_is_counted(write_log: WriteLog) -> None:
    with pytest.raises(BadLog, match=r"'label' has 2 of 4 rows read .* \(first: 2"):
        read(write_log(label=[1, 2, 0, -1]))


def test_a_null_label_is_not_a_label(write_log: WriteLog) -> None:
    with pytest.raises(BadLog, match=r"'label' has 1 of 4 rows"):
        read(write_log(label=[1, None, 0, 1]))


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("item", [0.5, 1.5, 2.5, 3.5], "must be int64 or string"),
        ("price", ["1", "2", "3", "4"], "must be a number"),
        ("label", ["1", "0", "0", "1"], "must be a number"),
        ("tags", [[0.5], [], None, [1.0]], "must be int64 or string"),
    ],
)
def test_a_wrong_type_is_named(
    write_log: WriteLog, column: str, values: list[object], wanted: str
) -> None:
    with pytest.raises(BadLog, match=rf"column '{column}' is .* over 4 rows, but {wanted}"):
        read(write_log(**{column: values}))


def test_two_files_of_one_split_must_agree_on_types(write_log: WriteLog) -> None:
    folder = write_log(SCHEMA.replace('"train.parquet"', '"*.parquet"'))
    table = pq.read_table(folder / "train.parquet")
    items = pa.array(["7", "8", "9", "9"])
    pq.write_table(table.set_column(2, "item", items), folder / "z.parquet")
    with pytest.raises(BadLog, match=r"z\.parquet: column 'item' is string .* but int64 elsewhere"):
        read(folder)


def test_a_split_without_files_is_empty(write_log: WriteLog) -> None:
    with pytest.raises(BadLog, match=r"split 'train' .* is empty: no Parquet file at .*none"):
        read(write_log(SCHEMA.replace("train.parquet", "none/*.parquet")))


def test_a_split_without_rows_is_empty(write_log: WriteLog) -> None:
    folder = write_log()
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.slice(0, 0), folder / "train.parquet")
    with pytest.raises(BadLog, match="its files hold 0 rows"):
        read(folder)


def test_a_split_that_the_schema_does_not_name_lists_those_it_does(write_log: WriteLog) -> None:
    with pytest.raises(BadLog, match=r"no split 'test'; schema\.toml names: train"):
        ClickLog(str(write_log())).pieces("test")


@pytest.mark.parametrize("kept", [0, 3, 200, 0.5, 0.99])
def test_a_truncated_file_is_refused(write_log: WriteLog, kept: float) -> None:
    folder = write_log()
    file = folder / "train.parquet"
    whole = file.read_bytes()
    size = int(kept if kept > 1 or kept == 0 else kept * len(whole))
    file.write_bytes(whole[:size])
    with pytest.raises(BadLog, match=r"train\.parquet"):
        read(folder)


def test_damage_within_a_file_is_refused(write_log: WriteLog) -> None:
    folder = write_log(item=list(range(4)))
    file = folder / "train.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[4:200] = bytes(196)
    file.write_bytes(damaged)
    with pytest.raises(BadLog, match=r"train\.parquet.*\(4 rows\)"):
        read(folder)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (SCHEMA.replace("item = {}", "item = {}\nitem = {}"), "named twice"),
        (SCHEMA + "item = {}\n", "column 'item' is named twice"),
        (SCHEMA.replace("item = {}", "label = {}"), "column 'label' is named twice"),
        (SCHEMA.replace("item = {}", 'item = { sied = "user" }'), "categorical.item.sied"),
        (SCHEMA.replace('side = "user"', 'side = "both"'), "categorical.user.side"),
        (SCHEMA.replace('label = "label"', ""), "label: Field required"),
        ("label = [", "not valid TOML"),
    ],
)
def test_a_wrong_schema_is_one_sentence(write_log: WriteLog, schema: str, message: str) -> None:
    with pytest.raises(BadSchema, match=message) as caught:
        ClickLog(str(write_log(schema)))
    assert "\n" not in str(caught.value).strip()


def test_a_folder_without_schema_says_what_a_log_is(tmp_path: object) -> None:
    with pytest.raises(EmbedcompError, match=r"has no readable schema\.toml: a click log is"):
        ClickLog(str(tmp_path))


def test_two_columns_of_one_name_in_a_file_are_refused(write_log: WriteLog) -> None:
    folder = write_log()
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.append_column("item", table["item"]), folder / "train.parquet")
    with pytest.raises(BadLog, match="2 columns named 'item'"):
        read(folder)


def test_an_infinite_number_is_refused(write_log: WriteLog) -> None:
    with pytest.raises(BadLog, match="'price' has 1 infinite values in 4 rows"):
        read(write_log(price=[1.0, float("inf"), None, 2.0]))
