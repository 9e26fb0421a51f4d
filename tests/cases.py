"""Models that know nothing of this project, for every kind of embedding module there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.embedding_configs import (
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.itep_embedding_modules import ITEPEmbeddingBagCollection
from torchrec.modules.itep_modules import GenericITEPModule
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

B, ROWS, DIM, DENSE = 48, 60, 8, 3
TABLES = "*embedding_bags.*"


def kjt(seed: int, keys: tuple[str, ...], *, weighted: bool = False) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(keys) * B,), generator=generator)
    total = int(lengths.sum())
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.randint(0, ROWS, (total,), generator=generator),
        lengths=lengths,
        weights=torch.rand(total, generator=generator) if weighted else None,
    )


def bags(*, weighted: bool = False) -> EmbeddingBagCollection:
    """Three tables, one of them read by two features, one of means."""
    mean = PoolingType.SUM if weighted else PoolingType.MEAN
    return EmbeddingBagCollection(
        is_weighted=weighted,
        tables=[config("t1", ["a", "b"]), config("t2", ["c"], mean), config("t3", ["d"])],
    )


def config(
    name: str, features: list[str], pooling: PoolingType = PoolingType.SUM, dim: int = DIM
) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=ROWS,
        embedding_dim=dim,
        feature_names=features,
        pooling=pooling,
        init_fn=nn.init.normal_,
    )


class Case(NamedTuple):
    """A model, inputs of it by seed, and how it is scored."""

    model: nn.Module
    inputs: Callable[[int], Any]
    score: Callable[[nn.Module, Any], Tensor]


def dense_and_sparse(seed: int) -> tuple[Tensor, KeyedJaggedTensor]:
    return torch.randn(B, DENSE, generator=torch.Generator().manual_seed(seed)), kjt(
        seed, ("a", "b", "c", "d")
    )


def call_both(model: nn.Module, inputs: tuple[Tensor, KeyedJaggedTensor]) -> Tensor:
    return model(*inputs).view(-1)


class OnTop(nn.Module):
    """A user's model: any embedding module and a perceptron on what it gives."""

    def __init__(self, below: nn.Module, read: Callable[[Any], Tensor], width: int):
        super().__init__()
        self.below, self.read = below, read
        self.top = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, inputs: Any) -> Tensor:
        return self.top(self.read(self.below(inputs))).squeeze(1)


def case(below: nn.Module, read: Callable[[Any], Tensor], width: int, inputs: Any) -> Case:
    return Case(OnTop(below, read, width), inputs, lambda model, x: model(x))


def values(output: KeyedTensor) -> Tensor:
    return output.values()


def dlrm() -> Case:
    return Case(DLRM(bags(), DENSE, [8, DIM], [16, 1]), dense_and_sparse, call_both)


def dlrm_dcn() -> Case:
    model = DLRM_DCN(bags(), DENSE, [8, DIM], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)
    return Case(model, dense_and_sparse, call_both)


def dlrm_projection() -> Case:
    model = DLRM_Projection(
        bags(),
        DENSE,
        [8, DIM],
        [16, 1],
        interaction_branch1_layer_sizes=[2 * DIM],
        interaction_branch2_layer_sizes=[3 * DIM],
    )
    return Case(model, dense_and_sparse, call_both)


def deepfm() -> Case:
    model = SimpleDeepFMNN(DENSE, bags(), hidden_layer_size=16, deep_fm_dimension=5)

    def logits(model: nn.Module, inputs: Any) -> Tensor:
        return model(*inputs).view(-1).clamp(1e-6, 1 - 1e-6).logit()

    return Case(model, dense_and_sparse, logits)


def weighted() -> Case:
    keys = ("a", "b", "c", "d")
    return case(bags(weighted=True), values, 4 * DIM, lambda s: kjt(s, keys, weighted=True))


def mixed_widths() -> Case:
    configs = [config("t1", ["a"], dim=8), config("t2", ["b", "a"], PoolingType.MEAN, dim=12)]
    below = EmbeddingBagCollection(tables=configs)
    return case(below, values, 32, lambda s: kjt(s, ("b", "a")))


def feature_processed() -> Case:
    positions = PositionWeightedModuleCollection(dict.fromkeys("abcd", 4))
    below = FeatureProcessedEmbeddingBagCollection(bags(weighted=True), positions)
    return case(below, values, 4 * DIM, lambda s: kjt(s, ("a", "b", "c", "d")))


def sequences() -> Case:
    tables = [
        EmbeddingConfig(
            name=f"t_{f}",
            num_embeddings=ROWS,
            embedding_dim=DIM,
            feature_names=[f],
            init_fn=nn.init.normal_,
        )
        for f in "ab"
    ]

    def summed(found: Any) -> Tensor:
        rows = [t.to_padded_dense(4).sum(1) for t in (found["a"], found["b"])]
        return torch.cat(rows, 1)

    inputs = lambda s: kjt(s, ("a", "b"))  # noqa: E731
    return case(EmbeddingCollection(tables=tables), summed, 2 * DIM, inputs)


def managed_collisions() -> Case:
    inner = EmbeddingBagCollection(tables=[config("t1", ["a"])])
    remap = MCHManagedCollisionModule(
        zch_size=ROWS,
        device=torch.device("cpu"),
        eviction_interval=1,
        eviction_policy=DistanceLFU_EvictionPolicy(),
        input_hash_size=1 << 20,
    )
    collisions = ManagedCollisionCollection({"t1": remap}, inner.embedding_bag_configs())
    below = ManagedCollisionEmbeddingBagCollection(inner, collisions)
    return case(below, lambda found: found[0].values(), DIM, lambda s: kjt(s, ("a",)))


def itep() -> Case:
    inner = EmbeddingBagCollection(tables=[config("t1", ["a"])])
    itep = GenericITEPModule(
        table_name_to_unpruned_hash_sizes={"t1": ROWS},
        lookups=[],
        enable_pruning=True,
        pruning_interval=1,
    )
    below = ITEPEmbeddingBagCollection(inner, itep)
    return case(below, values, DIM, lambda s: kjt(s, ("a",)))


class Plain(nn.Module):
    """torch's own tables with what makes a naive swap go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.EmbeddingBag(ROWS, DIM, mode="sum", padding_idx=3)
        self.mean = nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=-1, max_norm=1.5)
        self.sequence = nn.Embedding(ROWS, DIM, padding_idx=0)
        self.short = nn.Embedding(ROWS, DIM, max_norm=1.0)
        self.out = nn.Linear(4 * DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [
            self.sum(ids),
            self.mean(ids.reshape(-1), torch.arange(ids.shape[0]) * ids.shape[1]),
            self.sequence(ids).sum(1),
            self.short(ids).mean(1),
        ]
        return self.out(torch.cat(rows, 1)).squeeze(1)


def plain() -> Case:
    def ids(seed: int) -> Tensor:
        found = torch.randint(0, ROWS, (B, 5), generator=torch.Generator().manual_seed(seed))
        found[:, 0], found[0], found[1] = 0, 3, ROWS - 1
        return found

    return Case(Plain(), ids, lambda model, x: model(x))


class ReadsWeight(nn.Module):
    """A parent that reads the weights of its children."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(ROWS, DIM), nn.Linear(DIM, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.linear(self.table(ids))
        return (x @ self.table.weight.T).sum(1) + self.linear.weight.sum()


def reads_weight() -> Case:
    ids = lambda s: torch.randint(0, ROWS, (B,), generator=torch.Generator().manual_seed(s))  # noqa: E731
    return Case(ReadsWeight(), ids, lambda model, x: model(x))


class Tabular(nn.Module):
    """A table a column of ids, a bag over some, and a bit of everything on top."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, DIM) for _ in range(3))
        self.bag = nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=2)
        self.norm = nn.LayerNorm(4 * DIM + DENSE)
        self.cross = nn.Linear(4 * DIM + DENSE, 1, bias=False)
        self.shift = nn.Parameter(torch.randn(4 * DIM + DENSE))
        self.deep = nn.Sequential(nn.Linear(4 * DIM + DENSE, 16), nn.GELU(), nn.Linear(16, DIM))
        self.attend = nn.Linear(DIM, DIM)
        self.out = nn.Linear(6 * DIM + DENSE, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        rows.append(self.bag(ids[:, 1:4]))
        x = torch.cat([*rows, dense], 1)
        crossed = x * self.cross(x) + self.shift + x
        deep = self.deep(self.norm(crossed))
        heads = self.attend(torch.stack(rows, 1))  # [B, 4, d]
        pooled = (torch.sigmoid(heads) * heads).mean(1) / (1 + heads.abs().sum(1))
        return self.out(torch.cat([crossed, deep, pooled], 1)).squeeze(1)


def tabular() -> Case:
    def inputs(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, ROWS, (B, 4), generator=generator)
        ids[:3, 1:] = 2
        return {"ids": ids, "dense": torch.randn(B, DENSE, generator=generator)}

    return Case(Tabular(), inputs, lambda model, x: model(x["ids"], x["dense"]))


CASES = [
    dlrm,
    dlrm_dcn,
    dlrm_projection,
    deepfm,
    weighted,
    mixed_widths,
    feature_processed,
    sequences,
    managed_collisions,
    itep,
    plain,
    reads_weight,
    tabular,
]
