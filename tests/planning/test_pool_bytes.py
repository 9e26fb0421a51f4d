"""Plans in which tables read the same rows: whose bytes they are, and what is then counted.

The methods of the package share decoders; a method that shares rows stands beside them here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import SimpleNamespace

import pytest
import torch

from embedcomp import methods
from embedcomp.engine.ops import counts
from embedcomp.kernels import native
from embedcomp.methods.parts import build
from embedcomp.modules.sizes import module_bytes
from embedcomp.planning.choices import Choice, empty_bytes
from embedcomp.planning.planner import by_name
from embedcomp.planning.sharing import counted_once, groups
from embedcomp.sensitivity.layer import SharesPool, TableSpec
from embedcomp.storage.decode import Affine
from embedcomp.storage.index import Probed
from embedcomp.storage.probes import Hash, Probes
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping import swap
from tests import small
from tests.planning.test_latency import (
    IDS,
    A,
    B,
    C,
    as_resident_as_predicted,
    carried_out,
    timing,
)

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")

KEPT = 101


@dataclass(frozen=True, kw_only=True)
class Settings(SharesPool):
    rows: int = KEPT
    storage: str
    combine: str
    decoded: bool = False

    @property
    def pool(self):
        return self.storage, self.combine, self.decoded


def empty(spec, settings):
    width = small.DIM // 2 if settings.combine == "concat" or settings.decoded else small.DIM
    probes = tuple(Hash(rows=KEPT, salt=spec.rows + j) for j in range(2))
    index = Probed(KEPT, Probes(probes=probes, combine=settings.combine))
    decode = Affine(index.width(width), spec.dim, "float16", True) if settings.decoded else None
    return build.table(spec, StoredRows(KEPT, width, settings.storage), decode, index)


def compress(layer, settings):
    """The same rows for all tables."""
    served = empty(layer.spec, settings)
    generator = torch.manual_seed(0)
    served.fill(torch.randn(KEPT, served.stored.width, generator=generator))
    if served.decode is not None:
        served.decode.fill(torch.randn(served.decode.k, small.DIM), torch.randn(small.DIM))
    return served


@pytest.fixture(autouse=True)
def pooled(monkeypatch):
    """A method that is in no file."""
    found = SimpleNamespace(
        Settings=Settings, empty=empty, compress=compress, candidates=lambda spec: [FORMS[0]]
    )
    get = methods.get
    monkeypatch.setattr(methods, "get", lambda name: found if name == "pooled" else get(name))


def chosen(settings, names=(A, B, C)):
    layers = small.measured()[1].layers
    kept = methods.get("keep").Settings()
    found = {
        name: Choice("pooled", settings, empty_bytes("pooled", layer.spec, settings), 0.0)
        if name in names
        else Choice("keep", kept, empty_bytes("keep", layer.spec, kept), 0.0)
        for name, layer in layers.items()
    }
    return layers, counted_once(found, layers)


FORMS = [
    Settings(storage=storage, combine=combine, decoded=decoded)
    for storage in ("float16", "column_int4", "clustered3")
    for combine in ("concat", "add", "multiply")
    for decoded in (False, True)
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("settings", FORMS, ids=repr)
def test_a_pool_is_predicted_as_its_program_reads_it(settings):
    """Its bytes in memory, and the work of every look-up."""
    layers, found = chosen(settings)
    _, program = carried_out(layers, found)
    as_resident_as_predicted(found, program)
    counting = timing()
    counted = counting.fixed_work
    for name, choice in found.items():
        empty_one = methods.get(choice.method).empty(layers[name].spec, choice.settings)
        if isinstance(layers[name].spec, TableSpec):
            counted += counting.of_table(name, empty_one)
        else:
            counted += counting.of_linear(name, empty_one, counting.lowered.inputs(name, found))
    ids = {i: IDS.get(feature.name, 1) for i, feature in enumerate(counting.lowered.features)}
    done = counts(program.ops, 64, ids)
    assert counted == pytest.approx(done)
    assert done["probed"] == 64 * 2 * sum(ids.values())
    assert ("mixed rows" in done) == (
        settings.combine == "multiply"
        or (settings.combine == "add" and settings.storage == "column_int4")
    )


@pytest.mark.parametrize("names", [(A, B, C), (B, C), (C,)])
def test_the_first_table_has_the_bytes_of_the_pool(names):
    settings = Settings(storage="float16", combine="concat")
    model, found, measured = small.measured()
    wanted = {name: {"method": "pooled", **asdict(settings)} for name in names}
    plan = by_name(model, found, wanted)
    assert groups(plan) == [names]
    pool = 2 * KEPT * small.DIM // 2
    sizes = {p.layer: p.bytes_after for p in plan.tables}
    assert [sizes[name] for name in names] == [pool, *[0] * (len(names) - 1)]
    made = swap.apply(model, plan, found, measured)
    assert module_bytes(made) == plan.bytes_after
    assert len({id(made.get_submodule(name).stored) for name in names}) == 1
    rows = [made.get_submodule(name).stored.to_float() for name in names]
    generator = torch.manual_seed(0)
    wanted_rows = torch.randn(KEPT, 4, generator=generator).half().float()
    read = sum(made.get_submodule(name).reads(None) for name in names) > 0
    assert torch.equal(rows[0][read], wanted_rows[read]) and not rows[0][~read].any()


def test_tables_of_other_rows_share_none():
    one, other = FORMS[0], FORMS[2]
    layers, found = chosen(one, (A, B))
    found[C] = Choice("pooled", other, empty_bytes("pooled", layers[C].spec, other), 0.0)
    again = counted_once(found, layers)
    assert again[C].bytes == found[C].bytes
