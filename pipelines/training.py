"""What trains, on Ray Train's workers: a model, a compressed one that is tuned, the control.

The library's `fit` keeps its checkpoints in the step's folder, so when Ray Train starts the
workers again after one died, they go on from the last of them. With workers on several nodes that
folder must be on storage that all of them share.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train import report as report_metrics
from ray.train.torch import TorchTrainer

from embedcomp.artifact.artifact import Artifact
from embedcomp.errors import EmbedcompError
from embedcomp.pipelines.cluster import cpus_of_each
from embedcomp.recipes.progress import shown
from embedcomp.support.files import remove
from embedcomp.support.progress import State, Watch, quiet
from embedcomp.train import workers
from embedcomp.train.fit import Report


class Makes(Protocol):
    """A recipe with all but its watch filled in."""

    def __call__(self, *, watch: Watch) -> Artifact: ...


def on_workers(make: Makes, storage: Path, *, count: int, retries: int) -> Path:
    """Run a recipe on `count` workers of one process group and tell where its artifact is.

    Args:
        make: sent to every worker, so it holds paths and settings and no data.
        storage: folder for Ray Train's own files, removed when the run ends well.
        retries: how often all workers are started again after one of them dies.

    Raises:
        EmbedcompError: the recipe did.
    """
    cpus = cpus_of_each(count)
    # what type checkers see under these names is the version before, which has other arguments
    trainer = TorchTrainer(
        _loop(make),  # type: ignore[arg-type]
        scaling_config=ScalingConfig(num_workers=count, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=retries),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    try:
        with _interruptible():
            result: dict[str, str] = trainer.fit().return_value  # type: ignore[attr-defined]
    except WorkerGroupError as error:
        raise _cause(error) from error
    if "mistake" in result:
        raise EmbedcompError(result["mistake"])
    remove(storage)
    return Path(result["folder"])


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the block as it ends any other; Ray Train's answer to it is to exit with 0."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:  # Ray Train sets its own in the main thread alone, and leaves it there
            signal.signal(signal.SIGINT, before)


def _loop(make: Makes) -> Callable[[], dict[str, str]]:
    """The function that each worker runs; rank 0's result is the run's."""

    def loop() -> dict[str, str]:
        try:
            with shown() if workers.rank() == 0 else nullcontext(quiet) as show:
                return {"folder": str(make(watch=_reporting(show)).folder)}
        except EmbedcompError as error:
            if workers.count() > 1:  # the others would wait for ever for one that just returned
                raise EmbedcompError(str(error)) from None
            return {"mistake": str(error)}  # nothing that a retry could mend

    return loop


def _reporting(show: Watch) -> Watch:
    """A watch that also tells Ray Train of one evaluation an epoch, the same one on every worker.

    Ray Train takes in a report every second or two and a worker waits for that, so more of them
    would take longer than the training of a small log.
    """
    reported = -1

    def watch(report: State) -> None:
        nonlocal reported
        show(report)
        if isinstance(report, Report) and report.valid is not None and report.epoch != reported:
            reported = report.epoch
            report_metrics({"epoch": report.epoch, **report.valid.to_dict()})

    return watch


def _cause(error: WorkerGroupError) -> Exception:
    """The user's mistake behind a failed run, if there is one."""
    mistakes = [e for e in error.worker_failures.values() if isinstance(e, EmbedcompError)]
    return mistakes[0] if mistakes else error
