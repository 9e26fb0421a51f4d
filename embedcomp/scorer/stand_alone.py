"""What an artifact holds so that its scorer needs none of the model's code, checked against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.artifact.artifact import StandsAlone
from embedcomp.engine.arrays import as_array
from embedcomp.engine.engine import Engine
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.prepare import prepared
from embedcomp.engine.standalone import Standalone
from embedcomp.engine.tensors import StoredMatrix, Table
from embedcomp.graph.export import (
    Exported,
    Score,
    batch_rows,
    export,
    rebatched,
)
from embedcomp.graph.graph import LookUp
from embedcomp.graph.lookups import CannotExport, plain_linears
from embedcomp.kernels import native
from embedcomp.log.batches import to_batch
from embedcomp.log.features import Features
from embedcomp.log.rows import Bag, Rows
from embedcomp.modules.layout import layouts
from embedcomp.modules.table import CompressedBag, CompressedTable
from embedcomp.scorer.portable import Portable
from embedcomp.storage.decode import Decoder, Scatter
from embedcomp.storage.index import probes_of
from embedcomp.storage.rows import StoredRows

CHECKED_ROWS = (1, 2, 7)
TOLERANCE = 1e-4  # of a logit, between the model and what was made of it


def stand_alone(
    model: nn.Module,
    score: Score,
    example: Any,
    *,
    user: Sequence[str] = (),
    user_columns: Mapping[int, Sequence[int]] | None = None,
    precision: str = "float32",
) -> StandsAlone:
    """Export a model and describe its tables and layers.

    Raises:
        CannotExport: as for `export`.
    """
    thawed = [n for n, m in model.named_modules() if isinstance(m, StoredRows) and m.thawed]
    if thawed:
        raise CannotExport(
            f"{thawed[0]} is being trained; call embedcomp.freeze_ on the model first"
        )
    exported = export(model, score, example)
    keys = {key for leaf in exported.leaves for key in leaf.keys}
    unknown = sorted(set(user) - keys)
    if unknown:
        raise CannotExport(
            f"the user's feature {unknown[0]!r} is none of the inputs' {', '.join(sorted(keys))}"
        )
    standalone = Standalone(
        leaves=exported.leaves,
        look_ups=exported.look_ups,
        weights=exported.weights,
        graph=exported.graph,
        reason=exported.reason,
        stored=_stored(model),
        tables=_tables(model, exported.look_ups),
        layers=layouts(model),
        user=tuple(user),
        user_columns={i: tuple(of) for i, of in (user_columns or {}).items()},
        precision=precision,
        least_rows=_least_rows(model, score, example),
    )
    result = StandsAlone(
        standalone=standalone, program=exported.program, held=_held(model, exported)
    )
    _check(result, model, score, example)
    return result


@torch.no_grad()
def _check(exported: StandsAlone, model: nn.Module, score: Score, example: Any) -> None:
    """Compare the exported model's logits with the model's, on other numbers of rows.

    Raises:
        CannotExport: they differ.
    """
    rows, alone = batch_rows(example), exported.standalone
    portable = Portable(alone, exported.program, exported.held)
    runs: dict[str, Callable[[Any], Tensor]] = {"torch.export": portable.logits}
    if alone.graph is not None and native.library() is not None:
        arrays = {name: as_array(tensor) for name, tensor in exported.held.items()}
        program = lower(
            alone.graph,
            alone.tensors(arrays),
            alone.user,
            alone.user_columns,
            as_stored=False,
        )
        engine = Engine(alone.graph, program, alone.user)
        runs["the compiled engine"] = lambda inputs: torch.from_numpy(
            engine.score(prepared(inputs, alone.leaves), logits=True)
        )
    was_training = model.training
    model.eval()
    try:
        for size in CHECKED_ROWS:
            inputs = rebatched(example, rows, torch.arange(size - 1, -1, -1) % rows)
            with plain_linears(model):  # products rounded to bytes are compared nowhere
                wanted = _scores(model, score, inputs, alone.least_rows)
            for name, run in runs.items():
                logits = _run(run, inputs, name)
                if not torch.allclose(logits, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                    raise CannotExport(
                        f"what {name} made of the model gives other scores than the model (for "
                        f"example {logits[0]:.6f} instead of {wanted[0]:.6f} on {size} rows); it "
                        "must not depend on values of the example, such as a length or a random "
                        "number, that are no inputs"
                    )
    finally:
        model.train(was_training)


@torch.no_grad()
def _least_rows(model: nn.Module, score: Score, example: Any) -> int:
    """Rows that a model scores at a time: two, where it squeezes the batch of a single row away."""
    one = rebatched(example, batch_rows(example), torch.zeros(1, dtype=torch.int64))
    was_training = model.training
    model.eval()
    try:
        return 1 if score(model, one).numel() == 1 else 2
    except (IndexError, RuntimeError, ValueError):
        return 2
    finally:
        model.train(was_training)


def _scores(model: nn.Module, score: Score, inputs: Any, least_rows: int) -> Tensor:
    """Logits [B]; rows that are too few for the model are repeated."""
    rows = batch_rows(inputs)
    enough = rebatched(inputs, rows, torch.arange(max(rows, least_rows)) % rows)
    return score(model, enough).reshape(-1)[:rows]


def _run(run: Callable[[Any], Tensor], inputs: Any, name: str) -> Tensor:
    try:
        return run(inputs)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CannotExport(
            f"what {name} made of the model does not run on other rows than the example's "
            f"({type(error).__name__}: {reason[:300]}); look for a size that is read with len() "
            "instead of .shape, or a number that is taken out of a tensor"
        ) from error


def stand_alone_from_log(
    model: nn.Module, features: Features, precision: str = "float32"
) -> StandsAlone:
    """What scores a model of (dense, KeyedJaggedTensor), of a log's features, without its code."""
    dense, sparse = _example(features)
    columns = [i for i, feature in enumerate(features.dense) if feature.side == "user"]
    return stand_alone(
        model,
        _score_pair,
        (dense, sparse),
        user=[feature.name for feature in features.ids if feature.side == "user"],
        user_columns={0: columns} if columns else {},
        precision=precision,
    )


def _score_pair(model: nn.Module, inputs: tuple[Tensor, KeyedJaggedTensor]) -> Tensor:
    return model(*inputs).view(-1)


def _example(features: Features) -> tuple[Tensor, KeyedJaggedTensor]:
    """Two rows of unknown ids."""
    rows, one = 2, np.arange(3)
    bags = tuple(Bag(one, np.zeros(2, np.int32)) for _ in features.multi)
    single = np.zeros((rows, len(features.single)), np.int32)
    dense = np.zeros((rows, len(features.dense)), np.float32)
    batch = to_batch(Rows(np.zeros(rows, np.float32), dense, single, bags), features.keys)
    return batch.dense, batch.sparse


def _stored(model: nn.Module) -> dict[str, StoredMatrix]:
    return {
        name: StoredMatrix(kind=module.kind, rows=module.rows, width=module.width)
        for name, module in model.named_modules(remove_duplicate=False)  # tables share decoders
        if isinstance(module, StoredRows)
    }


def _tables(model: nn.Module, look_ups: Sequence[LookUp]) -> dict[str, Table]:
    tables = {}
    for name in sorted({table for what in look_ups for table in what.tables}):
        module: Any = model.get_submodule(name)
        compressed, pooling, last = isinstance(module, CompressedTable), "none", True
        if isinstance(module, CompressedBag):
            pooling, last = module.pooling, module.last_offset
        elif isinstance(module, nn.EmbeddingBag):
            pooling, last = module.mode, bool(module.include_last_offset)
        tables[name] = Table(
            rows=module.num_embeddings,
            dim=module.embedding_dim,
            pooling=pooling,
            # which nn.Embedding reads as any other row: it only keeps it from being trained
            padding_idx=None if isinstance(module, nn.Embedding) else module.padding_idx,
            last_offset=last,
            stored=compressed,
            decodes=_decodes(module.decode) if compressed else "",
            probes=probes_of(module.index) if compressed else None,
        )
    return tables


def _decodes(decode: Decoder | None) -> str:
    if decode is None:
        return ""
    if isinstance(decode, Scatter):
        return "scatter"
    return "residual" if decode.residual else "affine"


def _held(model: nn.Module, exported: Exported) -> dict[str, Tensor]:
    """The model's state, and buffers that are no part of it but that the program reads."""
    held = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    buffers = dict(model.named_buffers())
    for name in exported.weights:
        if name in buffers and name not in held:
            held[name] = buffers[name]
    for name in {table for what in exported.look_ups for table in what.tables}:
        module: Any = model.get_submodule(name)
        limit = getattr(module, "max_norm", None)
        if limit is not None:  # what a look-up would shrink rows to
            weight = held[f"{name}.weight"]
            held[f"{name}.weight"] = torch.renorm(weight, module.norm_type, 0, limit)
    return held
