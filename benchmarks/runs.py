"""All runs behind the documents' figures, one after the other: `python -m benchmarks.runs`.

Each is a process of its own, and one that fails does not stop the others. The same command goes on
where it was stopped: what has a record of this commit is not run again. `--tiny` sees that every
script starts and ends, on small made-up logs in the place of the real ones; it leaves no records.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import child
from benchmarks.result import RESULTS, source
from benchmarks.script import DATA, WORK, console
from embedcomp.log.synth import synth


@dataclass(frozen=True, kw_only=True)
class Run:
    """One command.

    record: folder of its records.
    arguments: {data} is the folder of click logs, {work} that of what is done.
    minutes: on two cores with nothing else on them, estimated from earlier runs.
    tiny: what makes it short, behind the other arguments.
    """

    script: str
    record: str
    arguments: str = ""
    minutes: int
    tiny: str = ""

    def command(self, data: Path, work: Path, results: Path, tiny: bool) -> list[str]:
        """What follows `python -m`."""
        words = [*self.arguments.split(), *(self.tiny.split() if tiny else [])]
        filled = [word.format(data=data, work=work) for word in words]
        return [f"benchmarks.{self.script}", *filled, "--results", str(results)]


def _on(log: str, script: str, more: str = "", *, minutes: int, tiny: str) -> Run:
    """A run on one click log."""
    told = f"--log {log} {more} --data {{data}} --work {{work}}".replace("  ", " ")
    return Run(script=script, record=f"{script}-{log}", arguments=told, minutes=minutes, tiny=tiny)


MOVIES, VIDEOS, CLICKS = "movielens_1m", "kuairand", "globo_clicks"
QUALITY = "--seeds 0 --set epochs=1 --model-set hidden=[32]"
COMPARED = "--budgets 5x --seeds 1 --alone svd --models dlrm"
BOUNDS = "--bounds 0.01"
STUDENTS = "--budgets 5x --weights 0.7 --seeds 1 --set epochs=1"
FORMED = "--train-set embedding_l2=6000 --train-set probes=false"  # for movielens_1m's tables
BORN_AGAIN = "--models nfm dlrm --ratios 3 --seeds 1 --set epochs=1"
DEFAULTS = "--epochs 1 --seeds 1"
RUNS = (
    _on(MOVIES, "quality", minutes=25, tiny=f"{QUALITY} --budgets 5x"),
    _on(VIDEOS, "quality", minutes=50, tiny=QUALITY),
    _on(MOVIES, "comparison", "--tune-batch 1024 --models fibinet", minutes=150, tiny=COMPARED),
    _on(VIDEOS, "comparison", "--models dlrm deepfm nfm autoint", minutes=240, tiny=COMPARED),
    _on(MOVIES, "prediction", minutes=3, tiny="--options 6"),
    _on(VIDEOS, "prediction", minutes=10, tiny="--options 6"),
    Run(
        script="globo",
        record="globo",
        arguments="--epochs 10 --control --data {data} --work {work}",
        minutes=50,
        tiny="--epochs 1",
    ),
    Run(
        script="training_speed",
        record="training_speed",
        arguments="--data {data}",
        minutes=15,
        tiny="--rounds 1 --steps 2",
    ),
    Run(
        script="scoring",
        record="scoring",
        arguments="--models {work}/quality/kuairand/0/models --data {data}",
        minutes=15,
        tiny="--ranks 16 --seconds 0.02",
    ),
    Run(
        script="latency",
        record="latency",
        arguments="--data {data} --work {work}/latency",
        minutes=15,
        tiny="--logs synth",
    ),
    Run(
        script="low_rank_speed",
        record="low_rank_speed",
        minutes=4,
        tiny="--rows 10000 --rounds 1",
    ),
    _on(MOVIES, "auc_bound", minutes=10, tiny=BOUNDS),
    _on(VIDEOS, "auc_bound", minutes=20, tiny=BOUNDS),
    _on("criteo_14k", "auc_bound", minutes=10, tiny=BOUNDS),
    _on("avazu_10k", "auc_bound", minutes=10, tiny=BOUNDS),
    _on(
        CLICKS, "auc_bound", "--model deepfm --min-count 10 --set epochs=3", minutes=40, tiny=BOUNDS
    ),
    _on(VIDEOS, "planning_time", "--all", minutes=15, tiny="--rounds 1"),
    _on(
        CLICKS,
        "planning_time",
        "--model deepfm --min-count 10 --set epochs=1",
        minutes=20,
        tiny="--rounds 1",
    ),
    _on(MOVIES, "worth", minutes=15, tiny="--budgets 5x --set epochs=1"),
    _on(VIDEOS, "worth", minutes=40, tiny="--budgets 5x --set epochs=1"),
    _on(
        CLICKS,
        "worth",
        "--model deepfm --min-count 10 --set epochs=3",
        minutes=60,
        tiny="--budgets 5x",
    ),
    _on(
        MOVIES,
        "forms",
        minutes=600,
        tiny="--ratios 5 --epochs 1 --methods hashed --set epochs=1",
    ),
    _on(
        CLICKS,
        "forms",
        "--model deepfm --min-count 10 --set epochs=12 --set schedule=linear --ways model "
        "--ratios 100 1000 --methods untrained trellis_coded compositional drop_rare --epochs 2 "
        "--train-set distil=0.5 --train-set probes=false --train-set embedding_l2=2000",
        minutes=150,
        tiny="--ratios 5 --epochs 1 --methods trellis_coded --set epochs=1",
    ),
    _on(
        MOVIES,
        "shapes",
        f"--seeds 1 --epochs 8 --ratios 4 --train-set batch_rows=1024 {FORMED}",
        minutes=60,
        tiny="--shares 0.5 --ratios 4 --epochs 1 --seeds 1 --set epochs=1",
    ),
    _on(
        MOVIES,
        "ordered",
        f"--tune-set batch_rows=1024 --epochs 6 --train-set distil=0.7 {FORMED}",
        minutes=40,
        tiny="--budgets 3x 6x --epochs 1 --set epochs=1",
    ),
    _on(MOVIES, "students", "--tune-set batch_rows=1024", minutes=120, tiny=STUDENTS),
    _on(VIDEOS, "students", "--budgets 100x --weights 0 0.7 1", minutes=60, tiny=STUDENTS),
    _on(
        CLICKS,
        "students",
        "--model deepfm --min-count 10 --set epochs=2 --set schedule=linear --seeds 1 "
        "--student hidden=64,32 --budgets 10x 30x --weights 0 0.7 1 --tune-epochs 0",
        minutes=40,
        tiny=STUDENTS,
    ),
    _on(MOVIES, "rate_bound", minutes=15, tiny="--budgets 10x --set epochs=1"),
    _on(VIDEOS, "born_again", minutes=240, tiny=BORN_AGAIN),
    _on("criteo_14k", "born_again", "--seeds 3", minutes=60, tiny=BORN_AGAIN),
    _on(MOVIES, "own_tables", minutes=10, tiny="--budgets 5x --set epochs=1"),
    Run(
        script="defaults",
        record="defaults-drift",
        arguments="--data {data} --work {work}",
        minutes=20,
        tiny="--rows 6000 --epochs 1 --seeds 1",
    ),
    _on(MOVIES, "defaults", minutes=60, tiny=DEFAULTS),
    _on(VIDEOS, "defaults", minutes=60, tiny=DEFAULTS),
    _on(
        CLICKS,
        "defaults",
        "--model deepfm --min-count 10 --epochs 4 --seeds 1",
        minutes=60,
        tiny=DEFAULTS,
    ),
    _on("criteo_14k", "defaults", "--model deepfm", minutes=3, tiny=DEFAULTS),
    _on("avazu_10k", "defaults", "--model deepfm", minutes=3, tiny=DEFAULTS),
    Run(script="foreign", record="foreign", minutes=10),
    Run(script="solvers", record="solvers", minutes=2, tiny="--layers 20 --seeds 0"),
    Run(script="trellis", record="trellis", minutes=2, tiny="--seeds 0"),
    Run(
        script="resident",
        record="resident",
        arguments="--work {work}/resident",
        minutes=3,
        tiny="--rounds 1",
    ),
    Run(
        script="known_ids",
        record="known_ids",
        arguments="--work {work}/known_ids",
        minutes=4,
        tiny="--ids 10000 --asked 8192 --rounds 1",
    ),
    Run(script="slim", record="slim", minutes=5, tiny="--ids 1000 --rounds 1 --calls 1"),
    Run(script="lookups", record="lookups", minutes=2, tiny="--ids 1000 --calls 5"),
    Run(script="sharded", record="sharded", minutes=3, tiny="--ids 1000 --calls 5"),
    Run(script="scale", record="scale", minutes=2, tiny="--calls 50 --years 1"),
    Run(script="hosts", record="hosts", minutes=3),
    Run(
        script="serving",
        record="serving-kuairand",
        arguments="--data {data} --work {work}",
        minutes=25,
        tiny="--against --seconds 0.2 --warm-up 0.1 --rounds 1 --set epochs=1",
    ),
    Run(
        script="overload",
        record="overload-kuairand",
        arguments="--data {data} --work {work}",
        minutes=3,
        tiny="--seconds 1 2 2 --capacity-seconds 0.5 --set epochs=1",
    ),
    Run(
        script="soak",
        record="soak",
        arguments="--work {work}",
        minutes=12,
        tiny="--seconds 3 --swap-every 1 --kill-every 2 --set epochs=1",
    ),
    _on(
        MOVIES,
        "workers",
        minutes=30,
        tiny="--epochs 2 --seeds 1 --rounds 1 --rows 2000 --steps 12 --batch-rows 128",
    ),
    _on(
        CLICKS,
        "workers",
        "--model deepfm --min-count 10 --epochs 1 --seeds 1 --rounds 0 --only one two",
        minutes=10,
        tiny="--batch-rows 128",
    ),
    Run(
        script="long_logs",
        record="long_logs",
        arguments="--work {work}",
        minutes=20,
        tiny="--rows 20000 --counted 40000 --memory 1MiB",
    ),
    Run(
        script="ray_count",
        record="ray_count_movielens_1m",
        arguments="--log movielens_1m --data {data}",
        minutes=2,
    ),
)


def run(chosen: Sequence[Run], data: Path, work: Path, results: Path, tiny: bool) -> list[str]:
    """Run what has no record of this commit yet; those that failed, and why."""
    failed = []
    for one in chosen:
        if _has_record(one, results):
            console.print(f"{one.record}: has a record of {source().name}")
            continue
        console.print(f"{one.record}: about {one.minutes} minutes")
        try:
            done = child.run(one.command(data, work, results, tiny), shown=not tiny)
            console.print(f"{one.record}: {done.seconds / 60:.1f} minutes")
        except child.ChildFailed as error:
            failed.append(f"{one.record}: {error}")
        else:
            if not _has_record(one, results):
                failed.append(f"{one.record}: it ended without a record of that name")
    return failed


def _has_record(one: Run, results: Path) -> bool:
    """Whether it has one of this commit."""
    return any((results / one.record).glob(f"*-{source().name}.json"))


def tiny_logs(folder: Path) -> None:
    """Made-up logs under the real ones' names."""
    for name in (MOVIES, VIDEOS, CLICKS, "criteo_14k", "avazu_10k"):
        synth(folder / name, rows=3000)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    names = [one.record for one in RUNS]
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    options.add_argument("--data", type=Path, default=DATA, help="folder with the click logs")
    options.add_argument("--tiny", action="store_true", help="on small made-up logs")
    given = options.parse_args()
    unknown = sorted(set(given.names) - set(names))
    if unknown:
        options.error(f"there is no run {unknown[0]!r}; there are {', '.join(names)}")
    chosen = [one for one in RUNS if one.record in (given.names or names)]
    if given.tiny:
        with TemporaryDirectory() as scratch:
            tiny_logs(Path(scratch) / "data")
            places = (Path(scratch) / part for part in ("data", "work", "results"))
            failed = run(chosen, *places, tiny=True)
    else:
        failed = run(chosen, given.data, WORK, RESULTS, tiny=False)
    for reason in failed:
        console.print(f"failed: {reason}")
    sys.exit(min(len(failed), 1))


if __name__ == "__main__":
    main()
