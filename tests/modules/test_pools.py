"""Tables that read the same stored rows: counted once, saved once, trained once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from embedcomp.modules.layout import layouts, module_of, share
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.modules.table import CompressedBag, CompressedEmbedding, CompressedTable
from embedcomp.storage.decode import Affine, Scatter
from embedcomp.storage.index import Probed
from embedcomp.storage.probes import Digit, Hash, Permuted, Probes
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping.swap import freeze, thaw

ROWS, WIDTH, IDS = 53, 3, (40, 60, 30)
BAGS = torch.tensor([3, 3, 29, 0, 7, 8]), torch.tensor([0, 2, 2, 5, 6, 6])


def pool(storage: str = "float32") -> nn.ModuleDict:
    """Three tables of 6 columns: codes by two probes, and with a decoder by one."""
    model = nn.ModuleDict()
    for place, ids in enumerate(IDS):
        index = Probed(ROWS, _probes(place))
        stored = StoredRows(ROWS, WIDTH, storage)
        decode = Affine(WIDTH, 6, "float32", True) if place == 2 else None
        if decode is not None:
            decode.fill(torch.randn(WIDTH, 6), torch.randn(6))
        bag = CompressedBag(ids, 6, "sum", stored, decode=decode, index=index, padding_idx=3)
        model[f"t{place}"] = bag
    model["t0"].fill(torch.randn(ROWS, WIDTH, generator=torch.manual_seed(0)))
    for other in ("t1", "t2"):
        model[other].store_with(model["t0"])
    return model


def _probes(place: int) -> Probes:
    if place == 2:
        return Probes(probes=(Hash(rows=50, salt=2, start=3), Digit(rows=9)), combine="add")
    return Probes(probes=tuple(Permuted(rows=ROWS, first=j, stride=2, salt=1) for j in range(2)))


@pytest.mark.parametrize("storage", ["float32", "float16", "row_int8", "column_int4"])
def test_rows_that_tables_share_count_once(storage: str) -> None:
    model = pool(storage)
    decoder = model["t2"].decode
    assert module_bytes(model) == module_bytes(model["t0"].stored) + module_bytes(decoder)
    assert model_bytes(model)["tables"] == module_bytes(model)


def test_layouts_say_whose_rows_are_read() -> None:
    found = layouts(pool())
    assert [layout.get("of") for layout in found.values()] == [None, "t0", "t0"]


@pytest.mark.parametrize("storage", ["float16", "row_int4", "column_mixed3", "product1x4"])
def test_tables_built_again_share_their_rows(storage: str) -> None:
    model = pool(storage)
    found = layouts(model)
    again = nn.ModuleDict({name: module_of(layout) for name, layout in found.items()})
    share(again, found)
    assert again["t1"].stored is again["t0"].stored is again["t2"].stored
    again.load_state_dict(model.state_dict())
    assert module_bytes(again) == module_bytes(model)
    for name in found:
        assert torch.equal(again[name].to_float(), model[name].to_float())
        assert torch.equal(again[name](*BAGS), model[name](*BAGS))
    assert layouts(again) == found


def test_shared_rows_are_of_one_shape_and_kind() -> None:
    model = pool()
    probes = Probed(ROWS, _probes(0))
    for other in (StoredRows(ROWS, WIDTH, "float16"), StoredRows(ROWS, 6, "float32")):
        decode = Affine(probes.width(other.width), 6, "float32", False)
        table = CompressedBag(40, 6, "sum", other, decode=decode, index=probes)
        with pytest.raises(AssertionError):
            table.store_with(model["t0"])


@pytest.mark.parametrize("storage", ["float32", "row_int8", "column_int4", "product1x4"])
def test_a_pool_is_thawed_and_frozen_once(storage: str) -> None:
    """All tables train the same rows, and freezing them changes nothing by a bit."""
    model = pool(storage).train()
    thaw(model)
    masters = [p for p in model.parameters() if p.shape == (ROWS, WIDTH)]
    assert len(masters) == 1
    optimizer = torch.optim.SGD(masters, 0.1)
    sum(model[name](*BAGS).square().sum() for name in model).backward()
    assert masters[0].grad is not None and masters[0].grad.is_sparse
    optimizer.step()
    model.eval()
    before = {name: _outputs(model[name]) for name in model}
    freeze(model)
    for name, wanted in before.items():
        assert torch.equal(_outputs(model[name]), wanted)


@torch.no_grad()
def _outputs(table: CompressedTable) -> Tensor:
    return table(*BAGS)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("combine", ["concat", "add", "multiply"])
@pytest.mark.parametrize("decoded", ["", "affine", "residual", "scatter"])
def test_bags_equal_those_of_the_table_that_it_stands_for(
    pooling: str, combine: str, decoded: str
) -> None:
    table = _table(CompressedBag, combine, decoded, pooling=pooling)
    weight = table.to_float()
    wanted = nn.EmbeddingBag.from_pretrained(
        weight, mode=pooling, include_last_offset=True, padding_idx=3
    )(*BAGS)
    assert torch.allclose(table(*BAGS), wanted, atol=1e-5)
    if pooling == "sum":
        weights = torch.tensor([0.5, 2.0, -1.0, 3.0, 0.0, 1.0])
        wanted = nn.functional.embedding_bag(
            *(BAGS[0], weight, BAGS[1]),
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
            padding_idx=3,
        )
        assert torch.allclose(table(*BAGS, weights), wanted, atol=1e-5)
    sequence = _table(CompressedEmbedding, combine, decoded)
    ids = torch.tensor([[0, 39], [5, 3]])
    assert torch.allclose(sequence(ids), sequence.to_float()[ids].masked_fill(_at(3, ids), 0))


def _at(padding: int, ids: Tensor) -> Tensor:
    return (ids == padding)[..., None]


def _table(kind: type, combine: str, decoded: str, **settings: str) -> CompressedTable:
    torch.manual_seed(0)
    probes = (Hash(rows=50, salt=2, start=3), Digit(rows=9))
    index = Probed(ROWS, Probes(probes=probes, combine=combine, own=4, own_start=20))
    rest = 6 if decoded == "residual" else 0
    width = 4 if not rest else (8 if combine != "concat" else 4)
    stored = StoredRows(ROWS, width, "float32")
    codes = index.width(width)
    decode, dim = None, codes
    if decoded == "scatter":
        decode, dim = Scatter(codes, 10, "float32"), 10
        decode.fill(torch.randperm(10)[:codes], torch.randn(10))
    elif decoded:
        decode, dim = Affine(codes - rest, 6, "float32", True, residual=bool(rest)), 6
        decode.fill(torch.randn(codes - rest, 6), torch.randn(6))
    table = kind(40, dim, **settings, stored=stored, decode=decode, index=index, padding_idx=3)
    table.fill(torch.randn(ROWS, width))
    assert table.code_width == codes
    again = module_of(layouts(nn.ModuleDict({"t": table}))["t"])
    again.load_state_dict(table.state_dict())
    assert torch.equal(again.to_float(), table.to_float())
    return table
