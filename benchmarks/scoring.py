"""Scoring on one thread: the engine against torchrec float, torchrec int8, and AOTInductor.

    python -m benchmarks.scoring

Four parts, one result file. The yardstick is a DLRM of 26 tables of 100,000 x 64 with planted
spectra, so that codes of rank 16 and layers of rank 64 (or 16) lose nothing; all contenders score
the same batches in turn. The real model is DCN-V2 on kuairand (41 features), as
`python -m benchmarks.quality --log kuairand` left it in its work folder, at its 5x and 20x plans,
with the AUC of what the engine gives. Then one user with 512 candidates against the same rows sent
whole, and the memory and start of 1 and of 4 scoring processes.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.table import Table
from torch import Tensor, nn
from torchrec.inference.modules import quantize_inference_model
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.pt2.utils import register_fake_classes
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from benchmarks import result
from benchmarks.child import memory
from benchmarks.script import WORK, command, console, open_log, parser
from embedcomp.artifact import artifact
from embedcomp.artifact.artifact import Artifact
from embedcomp.engine.standalone import PRECISIONS
from embedcomp.log.batches import in_order
from embedcomp.modules.sizes import model_bytes
from embedcomp.scorer.bench import limits
from embedcomp.scorer.stand_alone import stand_alone_from_log
from embedcomp.support.metrics import Quality

ROWS, FEATURES, WIDTH, DENSE = 100_000, 26, 64, 13
KEYS = [f"f{i}" for i in range(FEATURES)]
USER = KEYS[:13]  # the user's features, where there is one user
BATCHES = (1, 16, 64, 256, 1024, 4096)
DIFFERENT = 16  # batches of each size
TABLES = "*embedding_bags.*"
CODES = {"method": "low_rank", "rank": 16, "storage": "column_int8"}
EVALUATED = 8192  # rows scored at a time for the AUC
CANDIDATES = 512
STORED = "float16"  # of low-rank layers

Batch = tuple[Tensor, KeyedJaggedTensor]
Scores = Callable[[Batch], Any]


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    results: dict[str, Any] = {"yardstick": {}}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for rank in options.ranks:
            results["yardstick"][f"rank_{rank}"] = yardstick(rank, folder, options.seconds)
        last = folder / f"rank_{options.ranks[-1]}"
        results["one_user"] = {"yardstick": one_user_yardstick(last, options.seconds)}
        results["processes"] = {"yardstick": processes(last, cores)}
        log = open_log(options.data, "kuairand")
        models = {name: options.models / name for name in ("original", *options.plans)}
        served = {name: _served(name, path, folder) for name, path in models.items()}
        results["kuairand"] = real(log, served, options.seconds)
        small = served[options.plans[0]]
        rows = next(iter(log.read(log.pieces("test")[0]))).slice(0, CANDIDATES)
        results["one_user"]["kuairand"] = one_user_kuairand(small, rows, options.seconds)
        results["processes"]["kuairand"] = processes(small, cores)
    file = result.write(
        "scoring",
        data={"yardstick": "made up", "kuairand": "kuairand test split"},
        settings={
            "batches": BATCHES,
            "tables": [FEATURES, ROWS, WIDTH],
            "codes": CODES,
            "seconds": options.seconds,
            "threads": 1,
        },
        seeds=[0],
        results=results,
        folder=options.results,
    )
    _show(results)
    console.print(f"written to {file}")


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[64, 16], help="of linear layers")
    options.add_argument("--seconds", type=float, default=2.0, help="measured per contender, batch")
    default = WORK / "quality" / "kuairand" / "0" / "models"
    options.add_argument("--models", type=Path, default=default, help="of benchmarks.quality")
    options.add_argument(
        "--plans", nargs="+", default=["all_5x_tuned_1", "all_20x_tuned_1"], help="among them"
    )
    return options.parse_args()


def score(model: nn.Module, inputs: Batch) -> Tensor:
    return model(*inputs).view(-1)


def planted(rank: int) -> DLRM:
    """A DLRM whose tables have rank 16 and whose linear layers have `rank`."""
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(
            name=f"t{i}", num_embeddings=ROWS, embedding_dim=WIDTH, feature_names=[key]
        )
        for i, key in enumerate(KEYS)
    ]
    model = DLRM(
        EmbeddingBagCollection(tables=tables), DENSE, [512, 256, WIDTH], [512, 512, 256, 1]
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.EmbeddingBag):
                codes, basis = torch.randn(ROWS, 16), torch.randn(16, WIDTH)
                module.weight.copy_(codes @ basis / 16)
            elif isinstance(module, nn.Linear) and _halves(module, rank):
                left = torch.randn(module.out_features, rank)
                right = torch.randn(rank, module.in_features)
                scale = (2 / rank / module.in_features) ** 0.5  # keeps what a ReLU lets through
                module.weight.copy_(left @ right * scale)
    return model.eval()


def _halves(layer: nn.Linear, rank: int) -> bool:
    """Whether two factors are smaller than the layer."""
    inputs, outputs = layer.in_features, layer.out_features
    return rank * (inputs + outputs) < inputs * outputs


def batch(rows: int, seed: int, *, one_user: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, ROWS, (FEATURES, rows), generator=generator)
    if one_user:
        ids[: len(USER)] = ids[: len(USER), :1]
    lengths = torch.ones(FEATURES * rows, dtype=torch.long)
    dense = torch.randn(rows, DENSE, generator=generator)
    return dense, KeyedJaggedTensor(keys=KEYS, values=ids.reshape(-1), lengths=lengths)


def yardstick(rank: int, folder: Path, seconds: float) -> dict[str, Any]:
    """Microseconds a call of every contender by batch size, and how far its scores are off."""
    console.print(f"the yardstick at rank {rank}")
    model = planted(rank)
    contenders: dict[str, Scores] = {"torchrec float": lambda x: torch.sigmoid(score(model, x))}
    quantized = quantize_inference_model(copy.deepcopy(model))
    contenders["torchrec int8"] = lambda x: torch.sigmoid(score(quantized, x))
    contenders["torchrec int8, AOTInductor"] = _compiled(quantized, folder / f"int8_{rank}.pt2")
    small = copy.deepcopy(model)
    layers = {n: m for n, m in small.named_modules() if isinstance(m, nn.Linear)}
    factors = {"method": "low_rank", "rank": rank, "storage": STORED}
    plan = {TABLES: CODES, **{n: factors for n, m in layers.items() if _halves(m, rank)}}
    embedcomp.swap_(small, plan)
    path = folder / f"rank_{rank}"
    embedcomp.save(small, path, score=score, example=batch(4, 0), user=USER)
    scorers = {p: embedcomp.Scorer.open(path, precision=p) for p in PRECISIONS}
    for precision, scorer in scorers.items():
        contenders[f"embedcomp {precision}"] = scorer.score
    with torch.inference_mode():
        found = {
            str(rows): _race(contenders, [batch(rows, s) for s in range(DIFFERENT)], seconds)
            for rows in BATCHES
        }
        checked = batch(4096, 99)
        wanted = contenders["torchrec float"](checked)
        off = {
            name: float((torch.as_tensor(run(checked)).view(-1) - wanted).abs().max())
            for name, run in contenders.items()
        }
    shares = {}
    for precision, scorer in scorers.items():
        assert scorer.work is not None
        can = limits(scorer.work.weight_bytes)
        shares[precision] = {
            rows: can.seconds(scorer.work, int(rows), FEATURES, False)
            * 1e6
            / taken[f"embedcomp {precision}"]
            for rows, taken in found.items()
        }
    return {
        "microseconds": found,
        "largest_difference_of_probabilities": off,
        "spread_of_probabilities": float(wanted.std()),
        "share_of_the_roofline": shares,
        "work": {p: vars(s.work) for p, s in scorers.items()},
        "limits": {p: vars(limits(s.work.weight_bytes)) for p, s in scorers.items() if s.work},
        "bytes": {"original": model_bytes(model), "compressed": model_bytes(small)},
    }


class _Flat(nn.Module):
    """A model of tensors, as AOTInductor takes it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        sparse = KeyedJaggedTensor(keys=KEYS, values=values, lengths=lengths)
        return torch.sigmoid(score(self.model, (dense, sparse)))


def _compiled(model: nn.Module, file: Path) -> Scores:
    """The model exported with a dynamic batch and compiled."""
    register_fake_classes()
    rows = torch.export.Dim("rows", min=1, max=1 << 14)
    dense, sparse = batch(7, 0)
    with torch.no_grad():
        score(model, (dense, sparse))  # it remembers the features' order, or export fails
        program = torch.export.export(
            _Flat(model),
            (dense, sparse.values(), sparse.lengths()),
            dynamic_shapes=({0: rows}, {0: FEATURES * rows}, {0: FEATURES * rows}),
            strict=False,
        )
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    run = torch._inductor.aoti_load_package(package)
    return lambda x: run(x[0], x[1].values(), x[1].lengths())


def _race(
    contenders: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], seconds: float
) -> dict[str, float]:
    """Median microseconds a call, the contenders in turn."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        for x in inputs[:2]:
            run(x)
    began, turn = time.perf_counter(), 0
    while time.perf_counter() - began < seconds * len(contenders) or turn < DIFFERENT:
        for name, run in contenders.items():
            x = inputs[turn % len(inputs)]
            start = time.perf_counter()
            run(x)
            taken[name].append(time.perf_counter() - start)
        turn += 1
    return {name: median(times) * 1e6 for name, times in taken.items()}


def one_user_yardstick(path: Path, seconds: float) -> dict[str, Any]:
    """13 of 26 features are the user's; the dense ones are the candidates'."""
    inputs = [batch(CANDIDATES, seed, one_user=True) for seed in range(DIFFERENT)]
    found = {}
    for precision in PRECISIONS:
        scorer = embedcomp.Scorer.open(path, precision=precision)
        taken = _race(
            {
                "rows sent whole": scorer.score,
                "one user": lambda x, s=scorer: s.score(x, one_user=True),
            },
            inputs,
            seconds,
        )
        same = np.array_equal(scorer.score(inputs[0]), scorer.score(inputs[0], one_user=True))
        found[precision] = {"microseconds": taken, "scores_are_identical": bool(same)}
    return found


def one_user_kuairand(path: Path, rows: pa.RecordBatch, seconds: float) -> dict[str, Any]:
    """Raw columns: the user's sent once, or repeated in every row."""
    features = Artifact.open(path).features
    user = rows.slice(0, 1).select(features.user.names)
    items = rows.select(features.item.names)
    repeated = {n: pa.concat_arrays([user[n]] * len(rows)) for n in user.schema.names}
    whole = pa.RecordBatch.from_pydict(repeated | {n: items[n] for n in items.schema.names})
    found: dict[str, Any] = {
        "user_features": len(features.user.names),
        "item_features": len(features.item.names),
    }
    for precision in PRECISIONS:
        scorer = embedcomp.Scorer.open(path, precision=precision)
        runs = {
            "rows sent whole": lambda _, s=scorer: s.score(whole),
            "one user": lambda _, s=scorer: s.score(items, user),
        }
        same = np.array_equal(scorer.score(whole), scorer.score(items, user))
        taken = _race(runs, [None, None], seconds)
        found[precision] = {"microseconds": taken, "scores_are_identical": bool(same)}
    return found


def _served(name: str, path: Path, folder: Path) -> Path:
    """The artifact in today's format."""
    old = Artifact.open(path)
    if old.standalone is not None:
        return path
    model = old.model()
    made = artifact.save(
        folder / name,
        model,
        features=old.features,
        source=old.source,
        alone=stand_alone_from_log(model, old.features),
        bytes=old.manifest.bytes,
        plan=old.plan,
    )
    return made.folder.parent


def real(log: Any, paths: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """The original in torchrec, and everything in the engine: microseconds a call, and test AUC."""
    opened = {name: Artifact.open(path) for name, path in paths.items()}
    original = opened["original"].model()
    contenders: dict[str, Scores] = {"torchrec float": lambda x: torch.sigmoid(score(original, x))}
    for name, path in paths.items():
        for precision in PRECISIONS:
            scorer = embedcomp.Scorer.open(path, precision=precision)
            contenders[f"{name} {precision}"] = scorer.score
    features = opened["original"].features
    qualities = {name: Quality() for name in contenders}
    with torch.inference_mode():
        for rows in in_order(log, features, log.pieces("test"), EVALUATED):
            for name, run in contenders.items():
                p = torch.as_tensor(run((rows.dense, rows.sparse))).double().clamp(1e-12, 1 - 1e-12)
                qualities[name].add(p.logit().float().numpy(), rows.labels.numpy())
        found = {
            str(size): _race(contenders, list(_of_log(log, features, size)), seconds)
            for size in BATCHES
        }
    return {
        "microseconds": found,
        "auc": {name: quality.auc for name, quality in qualities.items()},
        "logloss": {name: quality.to_dict()["logloss"] for name, quality in qualities.items()},
        "bytes": {name: a.manifest.bytes for name, a in opened.items()},
    }


def _of_log(log: Any, features: Any, rows: int) -> Iterator[Batch]:
    for i, found in enumerate(in_order(log, features, log.pieces("test"), rows)):
        if i == DIFFERENT or len(found) < rows:
            return
        yield found.dense, found.sparse


CHILD = """
import sys, time
began = time.perf_counter()
import numpy as np, pyarrow as pa
import embedcomp
from embedcomp.engine.prepare import made_up
scorer = embedcomp.Scorer.open(sys.argv[1])
parts = made_up(scorer.alone, scorer.features if scorer.has_features else None, 64, 0)
scorer.call(parts, None)()
ready = time.perf_counter() - began
for seed in range(200):  # touch the tables as a server would
    features = scorer.features if scorer.has_features else None
    scorer.call(made_up(scorer.alone, features, 1024, seed), None)()
print(ready, "torch" in sys.modules, flush=True)
sys.stdin.read()
"""


def processes(path: Path, cores: Collection[int]) -> dict[str, Any]:
    """Start (to the first scores, Python's own start included) and memory of 1 and of 4 processes.

    Resident bytes count a shared page in every process; proportional ones share it out, so that
    their sum is what the machine holds.
    """
    found: dict[str, Any] = {"tables": Artifact.open(path).manifest.bytes["tables"]}
    for count in (1, 4):
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        told = []
        for child in children:
            assert child.stdout is not None
            told.append(child.stdout.readline().split())
        os.sched_setaffinity(0, own)
        held = [memory(child.pid) for child in children]
        for child in children:
            child.communicate("")
        found[str(count)] = {
            "ready_seconds": [float(line[0]) for line in told],
            "imports_torch": any(line[1] == "True" for line in told),
            "resident_bytes": [one["Rss"] for one in held],
            "proportional_bytes": sum(one["Pss"] for one in held),
            "file_bytes_shared": max(one["Pss_File"] for one in held),
        }
    return found


def _show(results: Mapping[str, Any]) -> None:
    for name, found in [*results["yardstick"].items(), ("kuairand", results["kuairand"])]:
        table = Table("rows", title=name)
        first, *others = next(iter(found["microseconds"].values()))
        table.add_column(f"{first}: us", justify="right")
        for other in others:
            table.add_column(f"{other}: us (times as fast)", justify="right")
        for rows, taken in found["microseconds"].items():
            cells = [f"{taken[o]:,.1f} ({taken[first] / taken[o]:.1f}x)" for o in others]
            table.add_row(rows, f"{taken[first]:,.1f}", *cells)
        console.print(table)
    for part in ("one_user", "processes"):
        console.print(part, results[part])
    console.print("AUC", results["kuairand"]["auc"])


if __name__ == "__main__":
    command(main)
