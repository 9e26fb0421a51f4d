"""Small layers are planned on one thread, and nothing else is changed by that."""

from __future__ import annotations

import re
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from embedcomp.kernels.threads import AHEAD, FEW, in_threads, threads_for
from embedcomp.planning import choices
from embedcomp.sensitivity.layer import Layer, LinearSpec, LinearStatistics
from embedcomp.sensitivity.loss import predicted_loss

OTHER = 2  # threads, of which a test with one would notice nothing


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(OTHER)
    yield
    torch.set_num_threads(before)


def pools() -> list[int]:
    """Threads of every library, with those that are built into torch."""
    own = re.findall(r"_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return [*map(int, own), *(pool["num_threads"] for pool in threadpool_info())]


def test_choices_of_a_small_layer_are_made_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*args):
        seen.append((torch.get_num_threads(), max(pools())))
        return predicted_loss(*args)

    monkeypatch.setattr(choices, "predicted_loss", watched)
    spec = LinearSpec(name="l", inputs=6, outputs=4, bias=False)
    layer = Layer(spec, torch.randn(4, 6), None, LinearStatistics.unmeasured(6))
    before = pools()
    choices.choices(layer, ["svd"])
    assert seen and set(seen) == {(1, 1)}
    assert torch.get_num_threads() == OTHER and pools() == before


def test_large_layers_have_all_threads() -> None:
    with threads_for(FEW + 1):
        assert torch.get_num_threads() == OTHER


@pytest.mark.parametrize("threads", [1, 3])
def test_work_in_threads_comes_in_the_order_of_its_items_and_holds_few(threads: int) -> None:
    begun, ended = [], []

    def items():
        for number in range(20):
            begun.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))  # the first ones end last
        return -number

    for found in in_threads(work, items(), threads):
        ended.append(found)
        assert len(begun) - len(ended) <= AHEAD * threads
    assert ended == [-number for number in range(20)]
