"""Checkpoints of a run: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol
from uuid import uuid4

import torch
from torch import Tensor, nn

from embedcomp.errors import BadModel
from embedcomp.support.files import replacing
from embedcomp.train import workers
from embedcomp.train.plateau import Plateau

ROWS = ".rows.pt"  # how names of files end that hold rows of tables


class Run(Protocol):
    """The state that a checkpoint holds."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    plateau: Plateau
    epoch: int
    batch: int
    batches: int


def save(run: Run, file: Path) -> None:
    """Write the whole state of a run: every worker its rows of tables, the first one all else.

    The file names those of the rows, which are all there by then, so whenever a worker is killed
    what is read is of one moment.
    """
    moment, rows = workers.once(lambda: uuid4().hex), _own_rows(run)
    with replacing(_beside(file, moment, workers.rank(), workers.count())) as fresh:
        torch.save(rows, fresh)
    workers.wait()
    if workers.rank() == 0:
        _save_others(run, file, moment, rows.keys())
    workers.wait()


def _save_others(run: Run, file: Path, moment: str, rows: Collection[str]) -> None:
    model = {name: t for name, t in run.model.state_dict().items() if _of_model(name) not in rows}
    state = {
        "model": model,
        "optimizers": [_without(o, at, rows) for at, o in enumerate(run.optimizers)],
        "plateau": asdict(run.plateau),
        "position": [run.epoch, run.batch, run.batches],
        "random": torch.get_rng_state(),
        "rows": [moment, workers.count()],
    }
    with replacing(file) as fresh:
        torch.save(state, fresh)
    for other in file.parent.glob(f"{file.stem}.*{ROWS}"):
        if moment not in other.name:
            other.unlink()


def _without(optimizer: torch.optim.Optimizer, at: int, rows: Collection[str]) -> dict[str, Any]:
    """An optimizer's state but for what it keeps of rows."""
    saved = optimizer.state_dict()
    state = {
        number: {
            key: kept for key, kept in of.items() if _of_optimizer(at, number, key) not in rows
        }
        for number, of in saved["state"].items()
    }
    return {**saved, "state": state}


def restore(run: Run, file: Path) -> None:
    """Take the state of a run back, so that it goes on as if it had never stopped.

    Another number of workers has other batches, and goes on from the same part of the epoch.
    """
    state = restore_trained(run, file)
    run.plateau = Plateau(**state["plateau"])
    run.epoch, batch, batches = state["position"]
    run.batch = batch * run.batches // batches
    torch.set_rng_state(state["random"])


def restore_trained(run: Run, file: Path) -> dict[str, Any]:
    """Take back the model's weights and the optimizers; gives the rest of the state."""
    state = read(file)
    parts = _parts(file, state)
    _restore_model(run, state, parts)
    for at, (optimizer, saved) in enumerate(zip(run.optimizers, state["optimizers"], strict=True)):
        for number, of in saved["state"].items():
            of.update(_own(parts, _of_optimizer(at, number, "")))
        optimizer.load_state_dict(saved)
    return state


def restore_weights(run: Run, file: Path) -> None:
    """Take back the model's weights alone."""
    state = read(file)
    _restore_model(run, state, _parts(file, state))


def _restore_model(run: Run, state: dict[str, Any], parts: Sequence[dict[str, Tensor]]) -> None:
    run.model.load_state_dict(state["model"] | _own(parts, _of_model("")))


def _parts(file: Path, state: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Rows of tables by the worker that had them."""
    moment, count = state["rows"]
    return [read(_beside(file, moment, rank, count), mapped=True) for rank in range(count)]


def _own(parts: Sequence[dict[str, Tensor]], start: str) -> dict[str, Tensor]:
    """This worker's rows of each tensor whose name begins so, by what follows."""
    names = [name for name in parts[0] if name.startswith(start)]
    return {name.removeprefix(start): _rows_of([p[name] for p in parts]) for name in names}


def _rows_of(parts: Sequence[Tensor]) -> Tensor:
    """This worker's rows of a tensor, of which each part has every len(parts)-th row."""
    if len(parts) == workers.count():
        return parts[workers.rank()].clone()  # into memory, of a file that is replaced
    rows = torch.arange(workers.rank(), sum(map(len, parts)), workers.count())
    found = parts[0].new_empty(len(rows), *parts[0].shape[1:])
    for at, part in enumerate(parts):
        places = (rows % len(parts) == at).nonzero().view(-1)
        found[places] = part[rows[places] // len(parts)]
    return found


def _own_rows(run: Run) -> dict[str, Tensor]:
    """Tensors that have a row for each of this worker's rows of tables, by names."""
    parameters = run.model.named_parameters()
    found = {_of_model(n): p.detach() for n, p in parameters if isinstance(p, workers.Sharded)}
    for at, optimizer in enumerate(run.optimizers):
        moved = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for number, parameter in enumerate(moved):
            if isinstance(parameter, workers.Sharded):
                for key, kept in optimizer.state.get(parameter, {}).items():
                    if kept.ndim:
                        found[_of_optimizer(at, number, key)] = kept
    return found


def _of_model(name: str) -> str:
    return f"model.{name}"


def _of_optimizer(at: int, number: int, key: str) -> str:
    return f"optimizers.{at}.{number}.{key}"


def _beside(file: Path, moment: str, rank: int, count: int) -> Path:
    """The file of one worker's rows."""
    return file.with_name(f"{file.stem}.{moment}.{rank}-of-{count}{ROWS}")


def read(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """A file of tensors, read without running any code that it may hold.

    Args:
        mapped: read each tensor when it is needed.

    Raises:
        BadModel: it is not such a file.
    """
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu", mmap=mapped)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise BadModel(f"{file} cannot be read as tensors: {str(error).splitlines()[0]}") from error
    return state
