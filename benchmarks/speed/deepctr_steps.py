"""DeepCTR-Torch trains a task by its own `fit` on arrays in memory; one epoch is timed.

Runs in the peers' own environment.
"""

from __future__ import annotations

import sys
from time import perf_counter
from types import ModuleType
from typing import Any

# deepctr_torch asks the package index for newer versions of itself when it is imported; without
# this module it cannot, and says so in one line
sys.modules["requests"] = ModuleType("requests")

import torch  # noqa: E402
from deepctr_torch.callbacks import Callback  # noqa: E402
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat  # noqa: E402
from deepctr_torch.models import DCN, DeepFM  # noqa: E402

from benchmarks.child import answer  # noqa: E402
from benchmarks.speed.task import Arrays, Task  # noqa: E402


class _Clock(Callback):
    """Times an epoch from its first batch to its last."""

    seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds += perf_counter() - self._began


def build(arrays: Arrays, task: Task) -> DeepFM | DCN:
    """DeepFM, or DCN with full cross matrices; lists are mean-pooled, L2 is the library's own."""
    columns: list[Any] = []
    for name, ids in arrays.ids.items():
        column = SparseFeat(name, vocabulary_size=arrays.rows[name], embedding_dim=task.width)
        if ids.ndim == 2:
            column = VarLenSparseFeat(column, maxlen=ids.shape[1], combiner="mean")
        columns.append(column)
    columns += [DenseFeat(name) for name in arrays.dense]
    shape: dict[str, Any] = {"dnn_hidden_units": tuple(task.hidden), "dnn_dropout": task.dropout}
    if task.model == "deepfm":
        model = DeepFM(columns, columns, seed=task.seed, **shape)
    else:
        shape |= {"cross_num": task.cross_layers, "cross_parameterization": "matrix"}
        model = DCN([], columns, seed=task.seed, **shape)  # DCN-V2 has no first-order part
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    model.compile(optimizer, "binary_crossentropy")
    return model


def main() -> None:
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    arrays = Arrays.load(task.folder)
    model = build(arrays, task)
    clock = _Clock()
    for steps, watched in ((task.warm_up_steps, []), (task.steps, [clock])):
        part = arrays.repeated(steps * task.batch_rows)
        inputs = part.ids | part.dense
        model.fit(inputs, part.labels, task.batch_rows, epochs=1, verbose=0, callbacks=watched)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    answer(rows=task.steps * task.batch_rows, seconds=clock.seconds, parameters=parameters)


if __name__ == "__main__":
    main()
