"""Progress of long runs on standard error: a bar on a terminal, a line an evaluation elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from embedcomp.train.fit import Report, Watch

console = Console(stderr=True)


@contextmanager
def shown(title: str) -> Iterator[Watch]:
    """A function to hand to `fit`; the states that it gets are shown under `title`."""
    with _bar() as bar:
        yield _Shown(title, bar)


@contextmanager
def counted(title: str) -> Iterator[Counted]:
    """Progress of many steps under `title`, with that of the one that runs below it."""
    with _bar() as bar:
        yield Counted(title, bar)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())


class Counted:
    """A bar of all steps and one of the step that runs; a finished step is a line."""

    def __init__(self, title: str, bar: Progress):
        self._bar = bar
        self._all = bar.add_task(title, total=None, note="")
        self._step: _Shown | None = None
        self._done = self._steps = 0

    def expect(self, steps: int, done: int) -> None:
        """Say how many steps there are, and how many of them are done already."""
        self._steps, self._done = steps, done
        self._bar.update(self._all, total=steps, completed=done)
        if done:
            console.print(f"{done:,} of {steps:,} are there already", highlight=False)

    def begin(self, title: str) -> Watch:
        self._step = _Shown(title, self._bar, printed=False)
        return self._step

    def end(self, told: str) -> None:
        if self._step is not None:
            self._step.hide()
        self._done += 1
        self._bar.update(self._all, completed=self._done)
        line = f"[{self._done}/{self._steps}] {told}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def steps(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function to tell how many of how many are done: a bar, or one line without a terminal."""
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not done and not sys.stderr.isatty():
                console.print(f"{title}: {total}", highlight=False)

        yield tell


class _Shown:
    def __init__(self, title: str, bar: Progress, *, printed: bool = True):
        self._title, self._bar, self._printed = title, bar, printed
        self._task = bar.add_task(title, total=None, note="")
        self._epoch, self._began, self._began_rows = -1, 0.0, 0
        self._auc = ""

    def __call__(self, report: Report) -> None:
        if report.epoch != self._epoch:
            self._epoch, self._began, self._began_rows = (
                report.epoch,
                perf_counter(),
                report.rows_done,
            )
        seconds = perf_counter() - self._began
        speed = (report.rows_done - self._began_rows) / seconds if seconds > 0 else 0.0
        if report.valid is not None:
            self._auc = f"AUC {report.valid.auc:.5f}, log loss {report.valid.logloss:.5f}"
            if self._printed:
                console.print(
                    f"{self._title}: epoch {report.epoch}, {self._auc}, "
                    f"learning rate x {report.factor:.2g}",
                    highlight=False,
                )
        note = f"{speed:,.0f} rows/s  {self._auc}"
        self._bar.update(
            self._task,
            description=f"{self._title}, epoch {report.epoch + 1}",
            completed=report.rows_done,
            total=report.rows_total,
            note=note,
        )

    def hide(self) -> None:
        """Take the bar away."""
        self._bar.remove_task(self._task)
