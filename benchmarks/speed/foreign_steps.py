"""A model of FuxiCTR or DeepCTR-Torch from plan to scores, beside its own.

Runs in the peers' own environment, which has embedcomp's requirements too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import embedcomp
from benchmarks.child import answer
from benchmarks.speed.task import Arrays, Task

ROWS, SCORED = 2048, 512
METHODS = ("row_int8", "row_int4", "low_rank")


def made_up(seed: int, task: Task) -> Arrays:
    """Random rows of six features of ids and two dense ones."""
    rng = np.random.default_rng(seed)
    rows = {f"s{i}": 100 * (i + 1) for i in range(6)}
    ids = {name: rng.integers(1, size, ROWS).astype(np.int32) for name, size in rows.items()}
    dense = {f"d{i}": rng.random(ROWS, np.float32) for i in range(2)}
    return Arrays(ids, rows, dense, rng.integers(0, 2, ROWS).astype(np.float32))


def fuxictr(arrays: Arrays, task: Task) -> tuple[nn.Module, Any, Callable[..., Tensor]]:
    """The model, all rows as it takes them, and its logits."""
    steps = import_module("benchmarks.speed.fuxictr_steps")
    with tempfile.TemporaryDirectory() as scratch:
        kind = {"deepfm": steps.DeepFM, "dcnv2": steps.DCNV2}[task.model]
        model = kind(steps.feature_map(arrays, task, scratch), task, scratch)
    columns = {name: torch.from_numpy(v).long() for name, v in arrays.ids.items()}
    columns |= {name: torch.from_numpy(v) for name, v in arrays.dense.items()}
    return model, columns, lambda m, x: m(x)["y_pred"].view(-1).logit()


def deepctr(arrays: Arrays, task: Task) -> tuple[nn.Module, Any, Callable[..., Tensor]]:
    """The model, all rows as one matrix with ids as floats, and its logits."""
    model = import_module("benchmarks.speed.deepctr_steps").build(arrays, task)
    columns = [*arrays.ids.values(), *arrays.dense.values()]
    matrix = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
    return model, matrix, lambda m, x: m(x).view(-1).logit()


def part(rows: Any, which: slice) -> Any:
    return {n: v[which] for n, v in rows.items()} if isinstance(rows, dict) else rows[which]


def spread_out(model: nn.Module) -> None:
    """Tables of a trained model's size, so that scores differ."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)


def main() -> None:
    name = sys.argv.pop(1)
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    model, rows, logits = {"fuxictr": fuxictr, "deepctr-torch": deepctr}[name](
        made_up(task.seed, task), task
    )
    spread_out(model)
    model.eval()
    began = process_time()
    batches = [
        (part(rows, slice(i, i + SCORED)), torch.zeros(SCORED)) for i in range(0, ROWS, SCORED)
    ]
    plan = embedcomp.plan(model, batches, budget="3x", score=logits, methods=METHODS)
    planned = process_time() - began
    embedcomp.swap_(model, plan)
    example = part(rows, slice(SCORED))
    with tempfile.TemporaryDirectory() as folder:
        saved = embedcomp.save(model, f"{folder}/m", score=logits, example=example)
        scorer = embedcomp.Scorer(saved)
        differences = {}
        for size in (1, 2, SCORED):
            some = part(rows, slice(ROWS - size, ROWS))
            with torch.no_grad():
                wanted = torch.sigmoid(logits(model, some)).numpy()
            differences[size] = float(np.abs(scorer.score(some) - wanted).max())
    answer(
        engine=scorer.engine.partition(" (")[0],
        bytes_before=plan.bytes_before,
        bytes_after=plan.bytes_after,
        planning_cpu_seconds=round(planned, 1),
        standard_deviation=float(wanted.std()),
        largest_difference=differences,
    )


if __name__ == "__main__":
    main()
