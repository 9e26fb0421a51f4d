"""Models written as other libraries write them: a mapping with one tensor a feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import embedcomp
from embedcomp.engine.engine import BadId
from embedcomp.errors import BadRequest
from tests.cases import DIM, ROWS, B

CLOSE = 1e-6
Inputs = dict[str, Tensor]


def inputs(seed: int, rows: int = B) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randint(0, ROWS, (rows,), generator=generator) for name in "ab"}
    found["seen"] = torch.randint(0, ROWS, (rows, 3), generator=generator)
    return found | {"price": torch.randn(rows, generator=generator)}


class Deep(nn.Module):
    """Ids that are cast, a table of two features, batch norm, a ReLU in place, probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(ROWS, DIM) for name in "ab"})
        self.norm = nn.BatchNorm1d(16)
        self.mlp = nn.Sequential(
            nn.Linear(3 * DIM + 1, 16), self.norm, nn.ReLU(inplace=True), nn.Linear(16, 1)
        )
        self.unused = nn.Parameter(torch.ones(5))
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.1, 2.0)
            self.norm.weight.normal_()
            self.norm.bias.normal_()

    def fields(self, x: Inputs) -> Tensor:
        rows = [self.tables[name](x[name].long()).unsqueeze(1) for name in "ab"]
        rows.append(self.tables["a"](x["seen"].long()).sum(1, keepdim=True))  # as feature a
        return torch.cat(rows, 1)

    def flat(self, x: Inputs) -> Tensor:
        return torch.cat([self.fields(x).flatten(1), x["price"].float().unsqueeze(1)], 1)

    def forward(self, x: Inputs) -> Tensor:
        return torch.sigmoid(self.mlp(self.flat(x)).squeeze(1)).clamp(1e-6, 1 - 1e-6).logit()


class Crossed(Deep):
    """Matrices that are parts of parameters, and a batch that is squeezed away if it is one row."""

    def __init__(self) -> None:
        super().__init__()
        width = 3 * DIM + 1
        self.down = nn.Parameter(torch.randn(2, width, 4) / 5)
        self.up = nn.Parameter(torch.randn(2, width, 4) / 5)

    def forward(self, x: Inputs) -> Tensor:
        first = self.flat(x).unsqueeze(2)  # [B, n, 1]
        experts = [torch.matmul(self.up[i], self.down[i].t() @ first) for i in range(2)]
        crossed = (first * torch.tanh(sum(experts)) + first).squeeze()
        return (self.mlp(torch.cat([crossed], dim=1))).squeeze(1)


class OneTable(nn.Module):
    """No dense feature, and a single table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(ROWS, DIM), nn.Linear(DIM, 1)

    def forward(self, x: Inputs) -> Tensor:
        return self.out(self.table(x["a"].to(torch.int32).long())).squeeze(1)


def call(model: nn.Module, x: Inputs) -> Tensor:
    return model(x)


def probabilities(model: nn.Module, x: Inputs) -> np.ndarray:
    """Probabilities of the model itself; a single row is scored with a second one beside it."""
    rows = len(x["a"])
    two = {name: torch.cat([values, values[:1]]) for name, values in x.items()}
    with torch.no_grad():
        return torch.sigmoid(model(two))[:rows].numpy()


def scorer_of(model: nn.Module, folder: Path) -> embedcomp.Scorer:
    example = inputs(0) if isinstance(model, Deep) else {"a": inputs(0)["a"]}
    return embedcomp.Scorer(embedcomp.save(model, folder / "m", score=call, example=example))


@pytest.fixture(params=[Deep, Crossed, OneTable], ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = request.param().eval()
    embedcomp.swap_(made, {"table*": "row_int8"})
    return made


@pytest.mark.sampled(3)
@pytest.mark.parametrize("compiled", [True, False], ids=["engine", "torch"])
def test_scores_are_the_models_for_any_rows_and_order(
    model: nn.Module, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    scorer = scorer_of(model, tmp_path)
    assert scorer.engine.startswith("compiled engine" if compiled else "torch")
    for rows in (1, 2, 5, 2 * B):
        x = inputs(rows, rows) if isinstance(model, Deep) else {"a": inputs(rows, rows)["a"]}
        found = scorer.score(dict(reversed(x.items())))
        np.testing.assert_allclose(found, probabilities(model, x), rtol=0, atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False], ids=["engine", "torch"])
def test_what_does_not_fit_the_example_is_named(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    scorer = scorer_of(Deep().eval(), tmp_path)
    x = inputs(1)
    x["seen"][4, 2] = ROWS
    with pytest.raises(
        BadId, match=rf"column 2 of input\['seen'\]. has id {ROWS}, but its table has"
    ):
        scorer.score(x)
    x = inputs(1)
    with pytest.raises(BadRequest, match=r"lack \['b'\] and have \['c'\], which the example"):
        scorer.score({"c" if n == "b" else n: values for n, values in x.items()})
    with pytest.raises(BadRequest, match=r"\['price'\] must be float32 \['B'\], a tensor"):
        scorer.score(x | {"price": 1.0})
    with pytest.raises(BadRequest, match=r"\['price'\] must be float32, but is torch.int64"):
        scorer.score(x | {"price": x["a"]})
    with pytest.raises(BadRequest, match=r"\['seen'\] must be int64 \['B', 3\]"):
        scorer.score(x | {"seen": x["a"]})


@pytest.mark.slow
def test_ids_of_another_type_are_scored(tmp_path: Path) -> None:
    model, x = Deep().eval(), inputs(1)
    few = {name: v.int() if name == "seen" else v for name, v in x.items()}
    made = embedcomp.save(model, tmp_path / "m", score=call, example=few)
    found = embedcomp.Scorer(made).score(few)
    np.testing.assert_allclose(found, probabilities(model, x), rtol=0, atol=CLOSE)
