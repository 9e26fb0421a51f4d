"""Formulas of the rows that ids read, against the same in whole numbers, id by id."""

from __future__ import annotations

import math

import pytest
import torch

from embedcomp.modules.table import CompressedBag
from embedcomp.storage.index import Probed, index_of
from embedcomp.storage.probes import (
    Combine,
    Digit,
    Hash,
    Permuted,
    Probe,
    Probes,
    hashed,
    prime_up_to,
    splitmix64,
)
from embedcomp.storage.rows import StoredRows

BITS = (1 << 64) - 1
LARGE = (0, 1, 7, 4096, (1 << 31) - 1, 1 << 31, (1 << 31) + 12345, (1 << 40) + 3)


def mixed(x: int) -> int:
    """splitmix64 as its authors write it, in numbers that do not end."""
    x = (x + 0x9E3779B97F4A7C15) & BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def row(probe: Probe, id: int) -> int:
    """The stored row that an id reads."""
    if isinstance(probe, Digit):
        return probe.start + (id // probe.divisor) % probe.rows
    if isinstance(probe, Hash):
        return probe.start + (mixed(id + probe.salt * 2**32) // 2**32) * probe.rows // 2**32
    assert isinstance(probe, Permuted)
    partition, place = divmod(probe.first + probe.stride * id, probe.rows)
    if partition == 0:
        return probe.start + place
    upper, lower = divmod(mixed(partition + probe.salt * 2**32), 2**32)
    times, more = 1 + upper * (probe.rows - 1) // 2**32, lower * probe.rows // 2**32
    return probe.start + (times * place + more) % probe.rows


def rows(probes: Probes, id: int) -> list[int]:
    """The stored rows of which an id's is made."""
    count = len(probes.probes)
    if id < probes.own:
        if probes.combine == "concat":
            return [probes.own_start + count * id + j for j in range(count)]
        return [probes.own_start + id]
    return [row(probe, id - probes.own) for probe in probes.probes]


def test_splitmix64_gives_the_numbers_that_its_authors_publish() -> None:
    """Of the state 0: each further number is of the state that 0x9E37... is added to."""
    states = [(i * 0x9E3779B97F4A7C15) & BITS for i in range(3)]
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mixed(state) for state in states] == wanted
    signed = torch.tensor([s - (s >> 63 << 64) for s in states])
    assert [int(found) & BITS for found in splitmix64(signed)] == wanted


@pytest.mark.parametrize(
    "probe",
    [
        Digit(rows=7),
        Digit(rows=1000, divisor=13, start=5),
        Digit(rows=(1 << 31) - 1, divisor=3),
        Hash(rows=1, salt=0),
        Hash(rows=1000, salt=3, start=11),
        Hash(rows=(1 << 31) - 1, salt=(1 << 31) - 1),
        Permuted(rows=2, salt=5),
        Permuted(rows=997, first=500, stride=3, salt=1, start=2),
        Permuted(rows=(1 << 31) - 1, first=1 << 33, stride=4, salt=2),
    ],
    ids=repr,
)
def test_a_probe_reads_the_row_of_its_formula(probe: Probe) -> None:
    ids = [*range(3000), *LARGE]
    found = probe.start + probe.places(torch.tensor(ids))
    assert found.tolist() == [row(probe, id) for id in ids]
    assert int(found.min()) >= probe.start and int(found.max()) < probe.start + probe.rows


def test_a_hash_spreads_ids_evenly() -> None:
    ids, kept = 100_000, 1000
    for salt in range(4):
        load = torch.bincount(Hash(rows=kept, salt=salt).places(torch.arange(ids)), minlength=kept)
        chi_square = float(((load - ids / kept).double() ** 2).sum()) / (ids / kept)
        assert abs(chi_square - (kept - 1)) < 4 * math.sqrt(2 * (kept - 1))


def test_pairs_share_both_rows_of_two_hashes_as_often_as_by_chance() -> None:
    ids, kept = 30_000, 300
    probes = Probes(probes=(Hash(rows=kept, salt=1), Hash(rows=kept, salt=2)))
    both = probes.rows(torch.arange(ids)) @ torch.tensor([kept, 1])
    load = torch.bincount(both)
    pairs, wanted = int((load * (load - 1) // 2).sum()), ids**2 / (2 * kept**2)
    assert abs(pairs - wanted) < 4 * math.sqrt(wanted)
    first = torch.bincount(probes.rows(torch.arange(ids))[:, 0])
    wanted = ids**2 / (2 * kept)
    assert abs(int((first * (first - 1) // 2).sum()) - wanted) < 4 * math.sqrt(wanted)


@pytest.mark.parametrize("kept", [100, 101, 5000])
def test_a_hash_into_as_many_rows_as_ids_is_the_plain_table(kept: int) -> None:
    index = Probed(kept + 3, Probes(probes=(hashed(100, kept, salt=9, start=3),)))
    assert torch.equal(index(torch.arange(100))[:, 0], torch.arange(100) + 3)
    assert hashed(100, 99, salt=9) == Hash(rows=99, salt=9)


@pytest.mark.parametrize(("ids", "kept"), [(1000, 97), (970, 97), (100, 101), (5000, 2)])
def test_permuted_rows_are_read_by_as_many_as_others_or_one_more(ids: int, kept: int) -> None:
    probes = [Permuted(rows=kept, first=j, stride=2, salt=4) for j in range(2)]
    found = torch.stack([probe.places(torch.arange(ids)) for probe in probes], 1).view(-1)
    whole = found[: len(found) // kept * kept].view(-1, kept)
    assert torch.equal(whole.sort(1).values, torch.arange(kept).expand_as(whole))
    load = torch.bincount(found, minlength=kept)
    assert set(load.tolist()) <= {2 * ids // kept, -(-2 * ids // kept)}
    if len(whole) > 3 and kept > 2:
        assert len({tuple(partition.tolist()) for partition in whole}) == len(whole)


def test_a_pool_with_a_row_for_each_number_is_the_plain_tables() -> None:
    """Two tables of 40 and 30 ids with 3 rows each, in 211 rows."""
    values = torch.randn(211, 2, generator=torch.manual_seed(0))
    stored = StoredRows(211, 2, "float32")
    stored.fill(values)
    first = 0
    for ids in (40, 30):
        probes = tuple(Permuted(rows=211, first=first + j, stride=3, salt=7) for j in range(3))
        index = Probed(211, Probes(probes=probes))
        table = CompressedBag(ids, 6, "sum", stored, decode=None, index=index)
        assert torch.equal(table.to_float(), values[first : first + 3 * ids].view(ids, 6))
        first += 3 * ids


def test_rows_of_a_permutation_are_a_prime_number() -> None:
    assert [prime_up_to(most) for most in (2, 3, 4, 100, 1 << 20)] == [2, 3, 3, 97, 1048573]
    with pytest.raises(AssertionError, match="91 rows of a permutation are no prime number"):
        Permuted(rows=91)


@pytest.mark.parametrize(("ids", "divisor"), [(1000, 32), (1000, 7), (1001, 1000), (999, 1)])
def test_quotient_and_remainder_tell_all_ids_apart(ids: int, divisor: int) -> None:
    quotients = -(-ids // divisor)
    quotient = Digit(rows=quotients, divisor=divisor)
    probes = Probes(probes=(quotient, Digit(rows=divisor, start=quotients)))
    found = probes.rows(torch.arange(ids))
    assert len(set(map(tuple, found.tolist()))) == ids
    assert probes.end == quotients + divisor and int(found.max()) == probes.end - 1


def test_blocks_of_a_binary_code_tell_all_ids_apart() -> None:
    probes = Probes(probes=tuple(Digit(rows=16, divisor=16**j, start=16 * j) for j in range(3)))
    assert len(set(map(tuple, probes.rows(torch.arange(4096)).tolist()))) == 4096


def probings(own: int = 0) -> list[Probes]:
    """All kinds, one to three of them, in all combinations."""
    kinds = (Hash(rows=50, salt=1, start=10), Digit(rows=40, divisor=9, start=60))
    third = Permuted(rows=97, start=2, first=11, stride=2, salt=3)
    return [
        Probes(probes=probes, combine=combine, own=own, own_start=100)
        for combine in ("concat", "add", "multiply")
        for probes in (kinds[:1], kinds, (*kinds, third), (third, *kinds[:1]))
    ]


@pytest.mark.parametrize("own", [0, 1, 20])
def test_what_an_id_reads_is_combined(own: int) -> None:
    for probes in probings(own):
        values = torch.randn(200, 4, generator=torch.manual_seed(1))
        stored = StoredRows(200, 4, "float32")
        stored.fill(values)
        index, ids = Probed(200, probes), torch.tensor([0, 1, 19, 20, 21, 399, 0])
        found = index.gather(ids, stored.gather)
        assert found.shape == (7, index.width(4))
        for place, id in enumerate(ids.tolist()):
            read = [values[row] for row in rows(probes, id)]
            if probes.combine == "concat":
                wanted = torch.cat(read)
            elif probes.combine == "add":
                wanted = torch.stack(read).sum(0)
            else:
                wanted = torch.stack(read).prod(0)
            assert torch.allclose(found[place], wanted, atol=1e-6)
        assert torch.equal(index.gather(ids.int(), stored.gather), found)
        assert index.gather(ids[:0], stored.gather).shape == (0, index.width(4))


@pytest.mark.parametrize("own", [0, 20])
def test_an_artifact_describes_probes(own: int) -> None:
    for probes in probings(own):
        index = Probed(200, probes)
        assert not index.state_dict()
        again = index_of(400, index.described)
        assert isinstance(again, Probed) and again.probes == probes and again.stored == 200


def test_probes_that_read_beyond_the_stored_rows_are_refused() -> None:
    for probes in (
        Probes(probes=(Hash(rows=10, start=91, salt=0),)),
        Probes(probes=(Digit(rows=10), Digit(rows=10)), own=6, own_start=89),
        Probes(probes=(Digit(rows=10), Digit(rows=10)), combine="add", own=12, own_start=89),
    ):
        assert probes.end == 101
        with pytest.raises(AssertionError):
            Probed(100, probes)


@pytest.mark.parametrize("combine", ["concat", "add", "multiply"])
def test_gradients_reach_the_rows_that_are_read(combine: Combine) -> None:
    """Those of the formula, as sparse as the rows, and of an own row none of the others'."""
    probes = Probes(
        probes=(Digit(rows=3), Digit(rows=3, divisor=3, start=3)),
        combine=combine,
        own=2,
        own_start=6,
    )
    stored = StoredRows(10, 2, "float32")
    stored.fill(torch.randn(10, 2, generator=torch.manual_seed(0)))
    stored.thaw()
    index, ids = Probed(10, probes), torch.tensor([0, 4, 9])
    assert stored.master is not None
    factors = torch.randn(3, index.width(2))
    (index.gather(ids, stored.gather) * factors).sum().backward()
    assert stored.master.grad is not None and stored.master.grad.is_sparse
    found = stored.master.grad.to_dense()
    values = stored.master.detach()
    wanted = torch.zeros(10, 2)
    for id, factor in zip(ids.tolist(), factors, strict=True):
        read = rows(probes, id)
        for j, row in enumerate(read):
            if combine == "concat":
                wanted[row] += factor.view(2, 2)[j]
            else:
                others = [values[other] for other in read if other != row]
                times = torch.stack(others).prod(0) if others and combine == "multiply" else 1
                wanted[row] += factor * times
    assert torch.allclose(found, wanted, atol=1e-6)
