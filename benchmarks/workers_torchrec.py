"""torchrec's DistributedModelParallel as a contender of `benchmarks.workers`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from embedcomp.log.batches import Batch
from embedcomp.train.optim import DenseAdam


class Parallel:
    """A model whose tables are sharded by torchrec's planner and moved by its fused kernels.

    The kernels for CPUs know no L2 and no Adam, so there is none. Gradients are means over workers.

    Args:
        rate: of tables.
        dense_rate: of everything else.
    """

    def __init__(self, model: nn.Module, rate: float, dense_rate: float):
        bags = [m for m in model.modules() if isinstance(m, EmbeddingBagCollection)]
        tables = [p for bag in bags for p in bag.parameters()]
        apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": rate, "eps": 1e-8})
        count = dist.get_world_size()
        topology = Topology(world_size=count, compute_device="cpu", local_world_size=count)
        sharders = [EmbeddingBagCollectionSharder()]
        group = dist.group.WORLD
        plan = EmbeddingShardingPlanner(topology=topology).collective_plan(model, sharders, group)
        self.model = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(group),
            device=torch.device("cpu"),
            plan=plan,
            sharders=sharders,
        )
        named = self.model.named_parameters()
        others = [p for name, p in named if "embedding_bags" not in name]
        self._dense = DenseAdam(others, lr=dense_rate, fused=True)
        self._rates = rate, dense_rate

    def step(self, batch: Batch, factor: float) -> None:
        """One step at `factor` times the learning rates."""
        tables, dense = self.model.fused_optimizer, self._dense
        for optimizer, rate in zip((tables, dense), self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
        tables.step()  # tells the kernels their rate
        dense.zero_grad(set_to_none=True)
        logits = self.model(batch.dense, batch.sparse).view(-1)
        binary_cross_entropy_with_logits(logits, batch.labels).backward()
        dense.step()
