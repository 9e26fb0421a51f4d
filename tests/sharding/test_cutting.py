"""What is written of slots, and what is told where it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedcomp.errors import BadArtifact, BadSettings
from embedcomp.kernels import native, routing
from embedcomp.kernels.routing import SLOTS
from embedcomp.sharding.cutting import Cutting, in_words, refuse_uncovered, slots_in
from embedcomp.sharding.slots import HeldSlots, OtherVersion, WrongMessage
from tests.sharding.cases import DIM, IDS, cut, inputs, model, save

built = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")


@pytest.mark.parametrize("words", ["0-127", "3,7-9", "1/4", "0-255", "255", "5-250,252"])
def test_slots_are_read_as_they_are_told(words: str) -> None:
    assert in_words(slots_in(words)) == words


def test_shares_of_slots_cover_all() -> None:
    found = [slot for shard in range(3) for slot in slots_in(f"{shard}/3")]
    assert sorted(found) == list(range(SLOTS))


@pytest.mark.parametrize("words", ["", "256", "9-3", "a", "2/2", "0/300", "0-256", "1-2-3"])
def test_what_is_no_slot_is_refused(words: str) -> None:
    with pytest.raises(BadSettings, match="must be among 0 to 255"):
        slots_in(words)


def test_slots_of_no_shard_are_named() -> None:
    with pytest.raises(BadSettings, match="slots 7,200-255 are of no shard that answers, 57 of"):
        refuse_uncovered(set(range(200)) - {7})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("cut")
    whole = save(model("row_int8"), there / "whole", inputs(5))
    return cut(whole, there / "cut").folder


def cutting_of(folder: Path) -> Cutting:
    found = Cutting.of(folder)
    assert found is not None
    return found


def message(version: int, *parts: tuple[int, list[int], list[int]]) -> np.ndarray:
    """A message of unweighted parts: a table, ids of each bag, ids."""
    words = [0x31534345, len(parts), version, 0]
    for table, counts, ids in parts:
        words += [table, len(counts), len(ids), 0, *counts, *ids]
    return np.array(words, np.uint32)


@built
def test_a_shard_sums_the_rows_of_its_slots(folder: Path) -> None:
    held = HeldSlots(cutting_of(folder), 1, range(SLOTS))
    table = list(cutting_of(folder).tables).index("tables.embedding_bags.t_one")
    rows = held.pool(message(1, (table, [1, 1], [5, 1499]))).reshape(2, DIM + 1)
    both = held.pool(message(1, (table, [0, 2], [5, 1499]))).reshape(2, DIM + 1)
    assert rows[:, DIM].tolist() == [1, 1] and both[:, DIM].tolist() == [0, 2]
    assert not both[0].any()
    np.testing.assert_allclose(both[1, :DIM], rows[0, :DIM] + rows[1, :DIM], rtol=1e-6)


@built
def test_a_shard_opens_its_own_files_alone(folder: Path, tmp_path: Path) -> None:
    cutting = cutting_of(folder)
    hidden = folder / "slots" / "009.safetensors"
    before = hidden.read_bytes()
    try:
        hidden.unlink()
        assert HeldSlots(cutting, 1, [8, 10]).slots == (8, 10)
        with pytest.raises(BadArtifact, match=r"009.safetensors is missing"):
            HeldSlots(cutting, 1, [8, 9])
        hidden.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(BadArtifact, match="its checksum differs"):
            HeldSlots(cutting, 1, [9])
    finally:
        hidden.write_bytes(before)


@built
def test_messages_for_what_is_not_here_are_refused(folder: Path) -> None:
    held = HeldSlots(cutting_of(folder), 1, [0, 1])
    good = message(1, (0, [1], [256]))
    assert held.pool(good).size == DIM + 1
    with pytest.raises(OtherVersion, match="version 2 is asked for, but this is version 1"):
        held.pool(message(2, (0, [1], [256])))
    with pytest.raises(WrongMessage, match=r"slot 2 is asked for, but this shard holds 0-1"):
        held.pool(message(1, (0, [1], [258])))
    with pytest.raises(WrongMessage, match="table 3 is asked for, of 3"):
        held.pool(message(1, (3, [1], [0])))
    with pytest.raises(WrongMessage, match=f"has no id {IDS['one'] * 256:,}"):
        held.pool(message(1, (0, [1], [IDS["one"] * 256])))
    for wrong in (good[:-1], good[:2], np.append(good, np.uint32(0)), good[:0], good * 2):
        with pytest.raises(WrongMessage, match="not what a front sends"):
            held.pool(wrong.astype(np.uint32))
    with pytest.raises(WrongMessage, match="not what a front sends"):
        held.pool(message(1, (0, [2], [256])))
    with pytest.raises(WrongMessage, match="not what a front sends"):
        held.pool(message(1, (0, [1 << 31, 1 << 31], [])))


@built
def test_structures_and_numbers_are_as_in_c() -> None:
    header = (Path(routing.__file__).parent / "slots.h").read_text()
    assert f"kSlots = {SLOTS};" in header
