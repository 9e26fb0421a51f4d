"""Models whose tables are stored in every form, and shards within the process that asks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from embedcomp.artifact.artifact import Artifact
from embedcomp.kernels.routing import SLOTS
from embedcomp.modules.table import CompressedBag, Pooling
from embedcomp.sharding import cut as cutting
from embedcomp.sharding.cutting import Cutting
from embedcomp.sharding.slots import HeldSlots
from embedcomp.storage.decode import Affine, Scatter
from embedcomp.storage.index import Cut, Index, Map, Ranked
from embedcomp.storage.kind import Kind
from embedcomp.storage.kinds import named
from embedcomp.storage.kinds.chunked import Bytes, Halves
from embedcomp.storage.kinds.csr import Csr
from embedcomp.storage.kinds.residual import Residual
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.names import STORAGES
from embedcomp.storage.rows import StoredRows

IDS = {"one": 1500, "several": 900, "mean": 700}  # ids of each table; bags of "one" have one id
PADDING = {"several": 3}
DIM = 16
CODES = ("product4x8", "clustered3", "sparse3x40")
TIERED = ("tiered", "trellis", "residual")
EVERY = (*STORAGES, *CODES, *TIERED, "csr", "chunked_float16", "chunked_int8")
INDICES = ("none", "cut", "map", "ranked")
EXACT = ("float32", "float16", "row_int8", "column_int8", "column_int4", "column_mixed3", "csr")


def kind(storage: str, rows: int, width: int) -> Kind:
    """A kind of stored rows by its name, with tiers that end within blocks of slots."""
    ends = (rows // 7, rows // 3, rows - 40, rows)
    made: dict[str, Callable[[], Kind]] = {
        "tiered": lambda: Tiered(ends, (width, width // 2, width // 4, 0)),
        "trellis": lambda: Trellis(ends, (3 * width, 2 * width - 3, width + 1, 0)),
        "residual": lambda: Residual(ends, (3, 2, 1, 0), (4, 8, 5)),
        "csr": lambda: Csr(rows * width // 3),
        "chunked_float16": lambda: Halves(rows, rows),
        "chunked_int8": lambda: Bytes(rows, rows),
    }
    return made[storage]() if storage in made else named(storage)


def index_of(form: str, ids: int) -> Index | None:
    generator = torch.manual_seed(1)
    if form == "none":
        return None
    if form == "cut":
        return Cut(ids - 333)
    if form == "map":
        found = Map(ids, ids // 2)
        found.fill(torch.randint(0, ids // 2, (ids,), generator=generator))
        return found
    tiers = torch.randint(0, 3, (ids,), generator=generator)
    ranked = Ranked(ids, int((tiers < 2).sum()) + 1, 3)  # ids of the last tier share its row
    ranked.fill(tiers)
    return ranked


def table(name: str, storage: str, form: str, decoded: str = "") -> CompressedBag:
    ids, index = IDS[name], index_of(form, IDS[name])
    rows = ids if index is None else index.stored
    width = DIM if not decoded else 7
    stored = StoredRows(rows, width, kind(storage, rows, width))
    generator = torch.manual_seed(2)
    stored.fill(torch.randn(rows, width, generator=generator) + 0.5)
    decode: Affine | Scatter | None = None
    if decoded == "affine":
        decode = Affine(width, DIM, "float16", True)
        decode.fill(
            torch.randn(width, DIM, generator=generator), torch.randn(DIM, generator=generator)
        )
    elif decoded == "scatter":
        decode = Scatter(width, DIM, "float16")
        decode.fill(torch.arange(width) * 2, torch.randn(DIM, generator=generator))
    pooling: Pooling = "mean" if name == "mean" else "sum"
    return CompressedBag(
        ids, DIM, pooling, stored, decode=decode, index=index, padding_idx=PADDING.get(name)
    )


class Clicks(nn.Module):
    """A network on three tables and two dense numbers."""

    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        configs = [
            EmbeddingBagConfig(
                name=f"t_{name}", num_embeddings=ids, embedding_dim=DIM, feature_names=[name]
            )
            for name, ids in IDS.items()
        ]
        self.tables = EmbeddingBagCollection(tables=configs, is_weighted=weighted)
        self.deep = nn.Sequential(nn.Linear(3 * DIM + 2, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        values = self.tables(sparse).values()
        return self.deep(torch.cat([values, dense], 1)).squeeze(1)


def model(storage: str, form: str = "none", decoded: str = "", weighted: bool = False) -> Clicks:
    made = Clicks(weighted)
    for name in IDS:
        if name == "mean" and weighted:
            continue
        made.tables.embedding_bags[f"t_{name}"] = table(name, storage, form, decoded)
    return made.eval()


def inputs(
    rows: int, seed: int = 0, *, most: int = 4, weighted: bool = False
) -> tuple[Tensor, KeyedJaggedTensor]:
    """Inputs with empty bags, bags of up to `most` ids, and ids that are looked up often or not."""
    random = np.random.default_rng(seed)
    lengths, values = [], []
    for name, ids in IDS.items():
        own = np.ones(rows, np.int64) if name == "one" else random.integers(0, most + 1, rows)
        lengths.append(own)
        values.append((ids * random.random(own.sum()) ** random.choice([1, 4])).astype(np.int64))
    every = np.concatenate(values)
    weights = torch.from_numpy(random.random(len(every)).astype(np.float32)) if weighted else None
    sparse = KeyedJaggedTensor(
        keys=list(IDS),
        values=torch.from_numpy(every),
        lengths=torch.from_numpy(np.concatenate(lengths)),
        weights=weights,
    )
    return torch.from_numpy(random.standard_normal((rows, 2)).astype(np.float32)), sparse


def save(made: nn.Module, folder: Path, example: object, user: Sequence[str] = ()) -> Artifact:
    return embedcomp.save(
        made, folder, score=lambda model, x: model(*x), example=example, user=list(user)
    )


def cut(artifact: Artifact, out: Path, near_bytes: int = 0) -> Artifact:
    return cutting.cut(artifact, out, near_bytes=near_bytes)


class InProcess:
    """Shards that are asked without a wire; number of them by `number`."""

    def __init__(
        self,
        artifact: Artifact,
        number: int,
        down: Sequence[int] = (),
        lookups: str = "engine",
    ):
        found = Cutting.of(artifact.folder)
        assert found is not None
        self.number, self._down = number, down
        self.owner = (np.arange(SLOTS) % number).astype(np.int32)
        self.held = [
            HeldSlots(
                found, artifact.version, np.flatnonzero(self.owner == shard).tolist(), lookups
            )
            for shard in range(number)
        ]
        self.asked = 0

    def ask(self, messages: Sequence[pa.Buffer | None]) -> Sequence[pa.Buffer | None]:
        self.asked += 1
        return [
            None
            if message is None or shard in self._down
            else pa.py_buffer(self.held[shard].pool(message))
            for shard, message in enumerate(messages)
        ]


def front(artifact: Artifact, shards: InProcess, precision: str | None = None) -> embedcomp.Scorer:
    return embedcomp.Scorer(artifact, precision=precision, shards=lambda *_: shards)
