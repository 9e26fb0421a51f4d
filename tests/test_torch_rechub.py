"""The ranking models of torch-rechub, which nobody here wrote, from plan to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import embedcomp

pytest.importorskip("torch_rechub", reason="torch-rechub is not installed")
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models import ranking

B, WIDTH = 64, 8
MLP: dict[str, Any] = {"dims": [16, 8], "activation": "relu", "dropout": 0.1}
QUICK = "svd"  # all methods take tens of seconds
FOLDED = pytest.param("low_rank", marks=pytest.mark.matrix)  # with a bias of its decoder


def deepfm(sparse: list[Any], dense: list[Any]) -> nn.Module:
    return ranking.DeepFM(sparse + dense, sparse, MLP)


def dcn(sparse: list[Any], dense: list[Any]) -> nn.Module:
    return ranking.DCN(sparse + dense, 2, MLP)


def dcnv2(sparse: list[Any], dense: list[Any]) -> nn.Module:
    return ranking.DCNv2(sparse + dense, 2, MLP, low_rank=4, num_experts=2)


def autoint(sparse: list[Any], dense: list[Any]) -> nn.Module:
    return ranking.AutoInt(sparse, dense, num_layers=1, mlp_params=MLP)


def fibinet(sparse: list[Any], dense: list[Any]) -> nn.Module:
    return ranking.FiBiNet(sparse + dense, MLP)


def widedeep(sparse: list[Any], dense: list[Any]) -> nn.Module:
    return ranking.WideDeep(dense, sparse, MLP)


def inputs(seed: int, rows: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = {f"s{i}": torch.randint(0, 20 + i, (rows,), generator=generator) for i in range(6)}
    return ids | {f"d{i}": torch.rand(rows, generator=generator) for i in range(2)}


def logits(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    return model(x).clamp(1e-6, 1 - 1e-6).logit()


@pytest.fixture(params=[deepfm, dcn, dcnv2, autoint, fibinet, widedeep], ids=lambda m: m.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    sparse = [SparseFeature(f"s{i}", 20 + i, WIDTH) for i in range(6)]
    made: nn.Module = request.param(sparse, [DenseFeature(f"d{i}") for i in range(2)])
    for module in made.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    return made.eval()


@pytest.mark.slow
@pytest.mark.parametrize("method", [QUICK, FOLDED])
def test_a_plan_is_carried_out_and_served_with_equal_scores(
    model: nn.Module, method: str, tmp_path: Path
) -> None:
    batches = [(inputs(seed), torch.zeros(B)) for seed in range(3)]
    given = {"score": logits, "methods": ("row_int8", method)}
    plan = embedcomp.plan(model, batches, budget="80%", **given)
    with torch.no_grad():
        before = model(inputs(8))
    embedcomp.swap_(model, plan)
    saved = embedcomp.save(model, tmp_path / "m", score=logits, example=inputs(1))
    scorer = embedcomp.Scorer(saved)
    assert scorer.engine.startswith("compiled engine"), scorer.engine
    with torch.no_grad():
        wanted = model(inputs(9)).numpy()
    np.testing.assert_allclose(scorer.score(inputs(9)), wanted, rtol=0, atol=2e-6)
    one = {name: values[:1] for name, values in inputs(9).items()}
    np.testing.assert_allclose(scorer.score(one), wanted[:1], rtol=0, atol=2e-6)
    embedcomp.restore_(model)
    with torch.no_grad():
        assert torch.equal(model(inputs(8)), before)


def test_every_parameter_is_a_layers_or_named_with_its_bytes(model: nn.Module) -> None:
    explained = {e.layer: e for e in embedcomp.explain(model)}
    for name, parameter in model.named_parameters():
        layer = explained[name.rpartition(".")[0]]
        said = f"{layer.bytes:,} bytes" in layer.reason or "BatchNorm" in layer.reason
        assert parameter.nbytes <= layer.bytes and (layer.methods or said), name
