"""What loss_assigned_codes promises beside what all methods do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from embedcomp.methods.trained import loss_assigned_codes
from embedcomp.methods.trained.loss_assigned_codes import Settings
from embedcomp.modules.layout import layouts, module_of
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import empty_on_meta
from embedcomp.sensitivity.layer import Layer, TableSpec, TableStatistics
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.assigned import AssignedRows

ROWS, DIM = 800, 6
SPEC = TableSpec(name="t", rows=ROWS, dim=DIM, pooling="sum", counted=True, by_count=True)
SETTINGS = Settings(rank=4, stages=(2, 1, 1, 0), bits=(5, 4))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def layer(spec: TableSpec = SPEC) -> Layer:
    weight = numbers(ROWS, DIM) * torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.1]) + 2
    root = numbers(DIM, DIM, seed=1).double()
    counts = 1000 / torch.arange(1, ROWS + 1).double()
    return Layer(spec, weight, None, TableStatistics(counts, root @ root.T))


def test_its_bytes_are_codes_codebooks_and_a_decoder() -> None:
    codes = 100 * 9 / 8 + 100 * 5 / 8 + 200 * 5 / 8  # whole bytes, but for the first two
    words = 2 * 4 * (4 + 32 + 16)
    decoder = 2 * (4 * DIM + DIM)
    size = module_bytes(empty_on_meta("loss_assigned_codes", SPEC, SETTINGS))
    assert size == 113 + 63 + 125 + words + decoder and codes == 300


def test_more_codes_lose_less_and_as_many_words_as_rows_next_to_nothing() -> None:
    losses = [
        predicted_loss(layer(), loss_assigned_codes.compress(layer(), settings))
        for settings in (
            replace(SETTINGS, stages=(1, 0, 0, 0), bits=(5,)),
            replace(SETTINGS, stages=(1, 1, 1, 0), bits=(5,)),
            SETTINGS,
            replace(SETTINGS, rank=DIM, stages=(3, 3, 2, 2), bits=(6, 6, 6)),
            replace(SETTINGS, rank=DIM, stages=(1, 1, 1, 1), bits=(10,)),
        )
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-5 * losses[0]


def test_a_table_in_any_order_has_the_rows_of_one_in_order() -> None:
    """Equal counts in order and out of it: an index finds each id's row."""
    order = torch.randperm(ROWS, generator=torch.manual_seed(2))
    wanted = loss_assigned_codes.compress(layer(), SETTINGS).to_float()
    mixed = replace(
        layer(),
        spec=replace(SPEC, by_count=False),
        weight=layer().weight[order],
        statistics=TableStatistics(layer().counts[order], layer().gradient),
        _shared={},
    )
    found = loss_assigned_codes.compress(mixed, replace(SETTINGS, index="ranked")).to_float()
    error = [
        float((r - w).square().mean()) for r, w in ((wanted, layer().weight), (found, mixed.weight))
    ]
    assert error[1] == pytest.approx(error[0], rel=0.2)


def test_an_artifact_builds_rows_that_train_by_assignment_again() -> None:
    served = nn.ModuleDict({"t": loss_assigned_codes.compress(layer(), SETTINGS)})
    (layout,) = json.loads(json.dumps(layouts(served))).values()
    built = module_of(layout)
    assert isinstance(built, CompressedTable) and isinstance(built.stored, AssignedRows)
    built.load_state_dict(served["t"].state_dict())
    assert torch.equal(built.to_float(), served["t"].to_float())


def test_from_the_log_rows_are_drawn_as_large_as_the_tables() -> None:
    settings = Settings(rank=DIM, stages=(2, 2, 2, 2), bits=(6, 6))
    drawn = replace(layer(), drawn=True, statistics=TableStatistics(layer().counts), _shared={})
    served = loss_assigned_codes.compress(drawn, settings)
    rows = served.to_float()
    torch.testing.assert_close(rows.std(0), layer().weight.std(0), rtol=0.25, atol=0.02)
    assert len(rows.unique(dim=0)) > 0.8 * ROWS
    again = loss_assigned_codes.compress(drawn, settings)
    assert torch.equal(again.to_float(), rows)
