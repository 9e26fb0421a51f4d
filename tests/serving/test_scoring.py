"""Calls that wait, are joined, take turns, are given up or refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from toy_scorer import save_small

from embedcomp.engine.requests import Read
from embedcomp.errors import BadRequest
from embedcomp.kernels import native
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving import scoring
from embedcomp.serving.caller import Caller
from embedcomp.serving.errors import Refused
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.models import Models
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.served import Served, Work
from embedcomp.serving.settings import ServerSettings

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not built")
SOMEBODY = Caller()
MOST = 16  # rows of a batch


class House:
    """A version, what scores its calls, and the batches that it scored.

    Calls are scored one turn at a time while `open` is set; `turns` are rows of each call in it.
    """

    def __init__(self, scorer: Scorer, **changes: int):
        self.settings = ServerSettings(threads=1, max_batch_rows=MOST, **changes)
        self.served = Served(scorer, self.settings)
        models = Models([self.served])
        self.scoring = Scoring(models, self.settings, Metrics(models))
        self.open, self.turns = threading.Event(), []
        self._scorer = scorer
        self.served.scorer = self

    def score_part(self, read: Read, rows: int) -> None:
        assert self.open.wait(20)
        time.sleep(0.001)  # long enough that others come meanwhile
        self.turns.append([min(rows, read.left)])
        self._scorer.score_part(read, rows)

    def score_joined(self, reads: list[Read]) -> None:
        assert self.open.wait(20)
        self.turns.append([read.rows for read in reads])
        self._scorer.score_joined(reads)

    def __getattr__(self, name: str) -> object:
        return getattr(self._scorer, name)

    def call(self, pool: ThreadPoolExecutor, items: pa.RecordBatch, *more: object) -> Future:
        """Send a call, and see it wait (or score) before anything else happens."""
        entered = threading.Event()

        def score() -> np.ndarray:
            def read(served: Served) -> Work:
                work = served.read(items, *more)
                entered.set()
                return work

            return self.scoring.score(self.served, Caller(), read)

        before = self.waiting()
        asked = pool.submit(score)
        assert entered.wait(10)
        self._until(lambda: self.waiting() > before or self.scoring._free == 0 or asked.done())
        time.sleep(0.01)
        return asked

    def score(self, items: pa.RecordBatch, caller: Caller = SOMEBODY) -> np.ndarray:
        return self.scoring.score(self.served, caller, lambda one: one.read(items))

    def waiting(self) -> int:
        return len(self.scoring._waiting)

    @staticmethod
    def _until(true: Callable[[], bool]) -> None:
        for _ in range(1000):
            if true():
                return
            time.sleep(0.01)
        raise AssertionError("it never came to that")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.open(save_small(tmp_path_factory.mktemp("scoring") / "small"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as found:
        yield found


def rows_of(number: int, seed: int, price: float = 1.0) -> pa.RecordBatch:
    random = np.random.default_rng(seed)
    tags = [[str(tag) for tag in random.choice(["a", "b", "c"], random.integers(0, 4))]]
    return pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(random.choice([10, 20, 999], number)),
            "city": pa.array([str(city) for city in random.choice(["Basel", "Bern"], number)]),
            "genres": pa.array([random.integers(0, 6, 3)] * number, pa.list_(pa.int64())),
            "tags": pa.array(tags * number, pa.list_(pa.string())),
            "age": pa.array(random.normal(30, 10, number).astype(np.float32)),
            "price": pa.array(np.full(number, price, np.float32)),
        }
    )


def test_calls_that_wait_are_scored_together_and_each_has_the_scores_it_has_alone(
    scorer: Scorer, pool: ThreadPoolExecutor
) -> None:
    house = House(scorer)
    sent = [rows_of(number, seed) for seed, number in enumerate([3, 1, 4, 2, 5, 6])]
    asked = [house.call(pool, items) for items in sent]
    house.open.set()
    for items, future in zip(sent, asked, strict=True):
        assert np.array_equal(future.result(20), scorer.score(items))
    assert house.turns == [[3], [1, 4, 2, 5], [6]]  # of 16 rows at most, in the order they came


def test_calls_of_one_user_and_of_other_versions_are_not_joined(
    scorer: Scorer, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    house, items = House(scorer), rows_of(4, 1)
    user = items.slice(0, 1).select(["user_id", "city", "age"])
    theirs = items.select(["genres", "tags", "price"])
    other = Served(Scorer.open(save_small(tmp_path / "small", seed=2)), house.settings)
    first = house.call(pool, items)
    one_user = [house.call(pool, theirs, user) for _ in range(2)]
    elsewhere = pool.submit(house.scoring.score, other, Caller(), lambda one: one.read(items))
    house._until(lambda: house.waiting() == 3)
    last = house.call(pool, items)
    house.open.set()
    assert np.array_equal(first.result(20), last.result(20))
    for future in one_user:
        assert np.array_equal(future.result(20), scorer.score(theirs, user))
    assert np.array_equal(elsewhere.result(20), other.scorer.score(items))
    assert house.turns == [[4], [4], [4], [4]]


def test_a_long_call_takes_turns_with_short_ones(scorer: Scorer, pool: ThreadPoolExecutor) -> None:
    house, long, short = House(scorer), rows_of(40, 1), rows_of(2, 2)
    first = house.call(pool, long)
    others = [house.call(pool, short) for _ in range(2)]
    house.open.set()
    assert np.array_equal(first.result(20), scorer.score(long))
    for future in others:
        assert np.array_equal(future.result(20), scorer.score(short))
    assert house.turns == [[16], [2, 2], [16], [8]]


def test_one_user_with_many_candidates_is_scored_in_parts_too(
    scorer: Scorer, pool: ThreadPoolExecutor
) -> None:
    house, items = House(scorer), rows_of(40, 1)
    user = items.slice(0, 1).select(["user_id", "city", "age"])
    house.open.set()
    asked = house.call(pool, items.select(["genres", "tags", "price"]), user)
    assert np.array_equal(
        asked.result(20), scorer.score(items.select(["genres", "tags", "price"]), user)
    )
    assert house.turns == [[16], [16], [8]]


def test_a_call_without_scores_fails_alone(scorer: Scorer, pool: ThreadPoolExecutor) -> None:
    house, good, bad = House(scorer), rows_of(3, 1), rows_of(2, 2)
    first = house.call(pool, good)
    asked = [house.call(pool, items) for items in (good, bad, good)]
    fails = threading.Event()
    joined = house.score_joined

    def not_finite(reads: list[Read]) -> None:
        fails.set()
        raise BadRequest("score", "row 4 has none")

    def alone(read: Read, rows: int) -> None:
        if read.rows == 2:
            raise BadRequest("score", "row 1 has none")
        scorer.score_part(read, rows)

    house.score_joined, house.score_part = not_finite, alone
    house.open.set()
    for future in (first, asked[0], asked[2]):
        assert np.array_equal(future.result(20), scorer.score(good))
    with pytest.raises(BadRequest, match="row 1 has none"):
        asked[1].result(20)
    assert fails.is_set() and joined is not house.score_joined


def test_rows_beyond_those_that_may_wait_are_refused_with_a_hint(
    scorer: Scorer, pool: ThreadPoolExecutor
) -> None:
    house = House(scorer, max_queue_rows=10)
    first = house.call(pool, rows_of(3, 1))
    waits = [house.call(pool, rows_of(12, 2))]
    with pytest.raises(Refused, match="12 candidates wait to be scored, and this server") as found:
        house.score(rows_of(1, 3))
    assert found.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found.value.retry_s is not None and 0.001 <= found.value.retry_s <= 1.0
    house.open.set()
    assert [len(future.result(20)) for future in (first, *waits)] == [3, 12]
    after = house.score(rows_of(1, 3))
    assert len(after) == 1 and house.scoring._rows == 0
    assert house.served.counts.failed == 1 and house.served.counts.calls == 3


class Leaves(Caller):
    """A caller who can be told to wait no longer."""

    def __init__(self) -> None:
        self.leave: Callable[[], None] | None = None

    def is_active(self) -> bool:
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.leave = callback
        return True


def test_a_call_that_is_given_up_while_it_waits_is_not_scored_and_leaves_its_place(
    scorer: Scorer, pool: ThreadPoolExecutor
) -> None:
    house, caller = House(scorer), Leaves()
    first = house.call(pool, rows_of(3, 1))

    def score() -> np.ndarray:
        return house.score(rows_of(5, 2), caller)

    asked = pool.submit(score)
    house._until(lambda: house.waiting() == 1 and caller.leave is not None)
    assert house.scoring._rows == 5
    caller.leave()
    with pytest.raises(Refused, match="cancelled or out of time while it waited"):
        asked.result(20)
    assert house.scoring._rows == 0 and not house.waiting()
    caller.leave()  # a second time, as gRPC does when the call ends
    house.open.set()
    assert len(first.result(20)) == 3 and house.turns == [[3]]


def test_a_call_waits_for_others_as_long_as_is_said(
    scorer: Scorer, pool: ThreadPoolExecutor
) -> None:
    house = House(scorer, max_wait_us=20_000_000)
    house.open.set()
    sent = [rows_of(number, number) for number in (3, 9, 4)]
    asked = [house.call(pool, items) for items in sent]  # 16 rows are there: nobody waits longer
    for items, future in zip(sent, asked, strict=True):
        assert np.array_equal(future.result(10), scorer.score(items))
    assert house.turns == [[3, 9, 4]]


def test_a_call_that_waits_for_others_in_vain_is_scored_alone(scorer: Scorer) -> None:
    house = House(scorer, max_wait_us=1000)
    house.open.set()
    items = rows_of(3, 1)
    found = house.score(items)
    assert np.array_equal(found, scorer.score(items)) and house.turns == [[3]]
    assert house.scoring._free == 1 and not house.scoring._gathering


def test_no_score_is_lost_or_mixed_up_when_many_threads_call(scorer: Scorer) -> None:
    house = House(scorer)
    house.scoring._free = house.scoring.threads = 2
    house.open.set()
    sent = [rows_of(number, number) for number in (1, 2, 5, 15, 16, 17, 50)]
    wanted = [scorer.score(items) for items in sent]

    def call(place: int) -> None:
        for i in range(60):
            this = (place + i) % len(sent)
            assert np.array_equal(house.score(sent[this]), wanted[this])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert house.scoring._free == 2 and house.scoring._rows == 0
    assert any(len(turn) > 1 for turn in house.turns)
    assert house.served.counts.calls == 480


def test_the_hint_is_the_time_that_what_waits_will_take(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(scorer)
    house.open.set()
    times = iter(range(99))
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: 0.02 * next(times))
    house.score(rows_of(4, 1))  # 20 ms from its begin to its end
    monkeypatch.undo()
    assert house.scoring._row_s == pytest.approx(0.1 * 0.02 / 4)
    house.scoring._rows, house.scoring.threads = 1000, 2
    assert house.scoring.hint_s() == pytest.approx(1000 * house.scoring._row_s / 2)
    house.scoring._rows = 0
    assert house.scoring.hint_s() == 0.001
