"""Methods by which ids share rows: what they begin with, and what a plan does with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from embedcomp import methods
from embedcomp.errors import BadSettings
from embedcomp.methods.parts import pooling, sharing
from embedcomp.methods.parts.sharing import SharedRows
from embedcomp.modules.layout import layouts
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import empty_on_meta
from embedcomp.sensitivity.layer import Layer, SharesPool, TableSpec, TableStatistics

IDS, DIM = 40, 4


def layer(seed: int = 0, name: str = "t", ids: int = IDS, drawn: bool = False) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    spec = TableSpec(name=name, rows=ids, dim=DIM, pooling="sum", counted=True, by_count=True)
    weight = torch.randn(ids, DIM, generator=generator)
    counts = torch.arange(ids, 0, -1).double()
    return Layer(spec, weight, None, TableStatistics(counts), drawn=drawn)


def made(name: str, of: Layer, **settings: object) -> CompressedTable:
    method = methods.get(name)
    values = {"storage": "float32", **settings}
    found = method.compress(of, method.Settings(**values))
    assert isinstance(found, CompressedTable)
    return found


def mean_by(key: Tensor, of: Layer) -> Tensor:
    """For each id the weighted mean of the rows with its key, by a plain loop."""
    assert of.counts is not None
    found = torch.empty_like(of.weight)
    for i in range(len(key)):
        alike = [j for j in range(len(key)) if key[j] == key[i]]
        weights = of.counts[alike] + of.counts.mean() * 1e-9
        found[i] = (weights[:, None] * of.weight[alike]).sum(0) / weights.sum()
    return found


def test_hashed_rows_begin_as_the_mean_of_those_that_meet() -> None:
    of = layer()
    table = made("hashed", of, share=0.25)
    assert table.index is not None and table.stored.rows == 10
    key = table.index(torch.arange(IDS))[:, 0]
    assert len(set(key.tolist())) > 5
    assert torch.allclose(table.to_float(), mean_by(key, of), atol=1e-6)


@pytest.mark.parametrize("name", ["hashed", "robe"])
def test_with_as_many_rows_as_ids_a_table_is_as_it_was(name: str) -> None:
    of = layer()
    assert torch.equal(made(name, of, share=1.0).to_float(), of.weight)


@pytest.mark.parametrize("name", methods.that_train())
def test_ids_with_rows_of_their_own_are_as_they_were(name: str) -> None:
    if not issubclass(methods.get(name).Settings, SharedRows):
        pytest.skip(f"{name} has no rows of their own")
    of = layer()
    table = made(name, of, share=0.8, own=0.25)
    assert torch.allclose(table.to_float()[:8], of.weight[:8], atol=1e-6)
    assert not torch.allclose(table.to_float()[8:], of.weight[8:], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("compositional", {"combine": "add"}),
        ("compositional", {"combine": "multiply"}),
        ("double_hash", {"combine": "add"}),
    ],
)
def test_sums_and_products_begin_where_no_row_alone_is_better(
    name: str, settings: dict[str, str]
) -> None:
    of = layer()
    table = made(name, of, share=0.5, **settings)
    counts = of.counts

    def error() -> float:
        assert counts is not None
        return float(counts @ (table.to_float() - of.weight).double().square().sum(1))

    least, start = error(), table.stored.to_float()
    for row in range(table.stored.rows):
        for step in (-0.05, 0.05):
            moved = start.clone()
            moved[row] += step
            table.stored.fill(moved)
            assert error() > least * (1 - 2e-3), (row, step)
    table.stored.fill(torch.zeros_like(start))
    assert least < 0.9 * error()


@pytest.mark.parametrize("name", methods.that_train())
def test_drawn_numbers_keep_their_size(name: str) -> None:
    """A mean of many drawn rows would be much smaller, a product of two as well."""
    of = layer(ids=400, drawn=True)
    settings = {"rows": 100, "width": 2} if name == "unified" else {"share": 0.2}
    if not issubclass(methods.get(name).Settings, SharedRows | SharesPool):
        pytest.skip(f"{name} shares no rows")
    candidates = methods.get(name).candidates(of.spec)
    for combine in {getattr(one, "combine", None) for one in candidates}:
        more = {} if combine is None else {"combine": combine}
        spread = made(name, of, **settings, **more).to_float().std()
        assert 0.6 < float(spread / of.weight.std()) < 1.8, (combine, spread)


def test_too_few_rows_for_quotients_and_remainders_are_refused() -> None:
    with pytest.raises(BadSettings, match="need 13"):
        made("compositional", layer(), share=0.2)
    least = made("compositional", layer(), share=13 / 40)
    assert least.stored.rows == 13 and least.index is not None
    pairs = least.index(torch.arange(IDS))
    assert len({tuple(pair) for pair in pairs.tolist()}) == IDS


def test_a_pool_begins_as_the_mean_over_its_tables() -> None:
    layers = [layer(0, "a"), layer(1, "b", ids=25)]
    tables = [made("unified", one, rows=16, width=2, chunks=2) for one in layers]
    apart = [table.stored.to_float() for table in tables]
    reads = [t.reads(pooling._weights(of)) for t, of in zip(tables, layers, strict=True)]
    pooling.join(tables, layers)
    assert tables[0].stored is tables[1].stored
    for row, (first, second) in enumerate(zip(*apart, strict=True)):
        total = reads[0][row] + reads[1][row]
        if total:
            wanted = (reads[0][row] * first + reads[1][row] * second) / total
            assert torch.allclose(tables[0].stored.to_float()[row], wanted.float(), atol=1e-6)


def test_a_pool_of_drawn_numbers_keeps_their_size() -> None:
    layers = [layer(seed, str(seed), drawn=True) for seed in range(8)]
    tables = [made("unified", one, rows=16, width=4, chunks=1) for one in layers]
    pooling.join(tables, layers)
    assert 0.7 < float(tables[0].stored.to_float().std()) < 1.4


def test_chunks_of_a_pool_are_read_by_hashes_of_their_own() -> None:
    first, second = (
        made("unified", layer(0, name), rows=1009, width=2, chunks=2) for name in ("a", "b")
    )
    assert first.index is not None and second.index is not None
    ids = torch.arange(IDS)
    places = torch.cat([first.index(ids), second.index(ids)], 1)  # [ids, 4]
    alike = [(a, b) for a in range(4) for b in range(a) if (places[:, a] == places[:, b]).sum() > 3]
    assert not alike


def test_what_cannot_be_cut_into_chunks_is_refused() -> None:
    with pytest.raises(BadSettings, match="cannot read 3 chunks of 2"):
        made("unified", layer(), rows=16, width=2, chunks=3)
    with pytest.raises(BadSettings, match="cannot be shared in 3 equal parts"):
        method = methods.get("robe")
        method.empty(layer().spec, method.Settings(share=0.5, chunks=3))
    narrow = replace(layer().spec, dim=1)
    assert methods.get("unified").candidates(narrow) == []


def test_sizes_add_up() -> None:
    settings = sharing.SharedRows(share=0.5, own=0.25)
    assert isinstance(layer().spec, TableSpec)
    assert sharing.sizes(layer().spec, settings, 2) == (5, 30)


def layout(name: str, spec: TableSpec, settings: object) -> object:
    return layouts(nn.ModuleDict({"t": empty_on_meta(name, spec, settings)}))


@pytest.mark.parametrize("name", methods.that_train())
def test_whatever_is_offered_a_table_of_few_rows_can_be_made(name: str) -> None:
    for rows in (*range(1, 13), 40, 90):
        for by_count in (False, True):
            spec = replace(layer().spec, rows=rows, counted=True, by_count=by_count)
            offered = methods.get(name).candidates(spec)
            layouts_of = [str(layout(name, spec, one)) for one in offered]
            if issubclass(methods.get(name).Settings, SharedRows):
                assert len(set(layouts_of)) == len(offered), "two candidates are one table"
            for settings in offered:
                served = empty_on_meta(name, spec, settings)
                assert (served.rows, served.dim) == (spec.rows, spec.dim)


def test_reads_of_a_row_are_those_of_all_ids_and_probes() -> None:
    of = layer()
    table = made("double_hash", of, share=0.25)
    assert table.index is not None and of.counts is not None
    wanted = torch.zeros(table.stored.rows).double()
    for i, places in enumerate(table.index(torch.arange(IDS)).tolist()):
        for place in places:
            wanted[place] += of.counts[i]
    assert torch.equal(table.reads(of.counts), wanted)
