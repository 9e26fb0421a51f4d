"""The real scorer behind the server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from toy_scorer import save_small

from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.client import Client
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings

SETTINGS = ServerSettings(port=0)


@pytest.fixture(scope="module")
def real_scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.open(save_small(tmp_path_factory.mktemp("artifact") / "clicks"))


@pytest.mark.server
def test_an_artifacts_scores_over_the_wire_are_those_in_process_to_the_last_bit(
    real_scorer: Scorer, columns: dict[str, pa.Array]
) -> None:
    items = pa.RecordBatch.from_pydict({n: pa.concat_arrays([c] * 20) for n, c in columns.items()})
    slices = [items.slice(start, 7) for start in range(0, 60, 7)]
    with (
        ScoringServer(Models.of(SETTINGS, real_scorer), SETTINGS) as server,
        Client(f"127.0.0.1:{server.port}") as client,
        ThreadPoolExecutor(4) as pool,
    ):
        for sent, scores in zip(slices, pool.map(client.predict, slices), strict=True):
            np.testing.assert_array_equal(scores, real_scorer.score(sent))
        found = client.metadata()
    assert (found.model, found.version) == ("clicks", 1)


@pytest.mark.server
def test_a_users_row_scores_as_if_it_were_repeated(
    real_scorer: Scorer, columns: dict[str, pa.Array]
) -> None:
    shared = ["user_id", "genres", "age"]
    user = pa.RecordBatch.from_pydict({n: columns[n][:1] for n in shared})
    items = pa.RecordBatch.from_pydict({n: c for n, c in columns.items() if n not in shared})
    repeated = columns | {n: pa.concat_arrays([columns[n][:1]] * 3) for n in shared}
    expected = real_scorer.score(pa.RecordBatch.from_pydict(repeated))
    with (
        ScoringServer(Models.of(SETTINGS, real_scorer), SETTINGS) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        np.testing.assert_array_equal(client.predict(items, user), expected)
