"""Progress of long work on standard error: a bar on a terminal, a line every few seconds elsewhere.

Lines come from a thread that wakes up by itself, so that work that says nothing for long is seen to
go on, with the layer that it is at and the time that it has taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Event, Thread
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from embedcomp.support.progress import State, Watch, quiet

EVERY_S = 5.0  # between two lines

console = Console(stderr=True)


@contextmanager
def shown(title: str = "") -> Iterator[Watch]:
    """A watch that shows what it is told, under `title`."""
    with _shown(title) as display:
        yield display


@contextmanager
def counted() -> Iterator[Counted]:
    """Progress of many pieces of work, each of several steps."""
    with _shown() as display:
        yield Counted(display)


def asked(progress: bool | Watch) -> AbstractContextManager[Watch]:
    """The watch that a caller of the library asks for: none, a shown one, or their own."""
    if progress is True:
        return shown()
    return nullcontext(progress or quiet)


class Counted:
    """Says before every line which piece of work it is about; one that is finished is a line."""

    def __init__(self, display: Display):
        self._display = display
        self._done = self._pieces = 0
        display.keeps_results = False

    def expect(self, steps: int, done: int) -> None:
        """Say how many pieces of work there are, and how many of them are done already."""
        self._pieces, self._done = steps, done
        if done:
            _print(f"{done:,} of {steps:,} are there already")

    def begin(self, title: str) -> Watch:
        place = f"[{self._done + 1}/{self._pieces}] " if self._pieces else ""
        self._display.title = f"{place}{title}"
        return self._display

    def end(self, result: str) -> None:
        self._done += 1
        _print(f"[{self._done}/{self._pieces}] {result}")


class Display:
    """The last state that a watch was told; `show` is called whenever there is another one.

    Args:
        clock: gives seconds.
    """

    def __init__(
        self,
        title: str = "",
        *,
        show: Callable[[Display], None] = lambda display: None,
        clock: Callable[[], float] = monotonic,
    ):
        self.title, self.keeps_results = title, True
        self._show, self._clock = show, clock
        self.state: State | None = None
        self._began, self._first, self._result = 0.0, 0, ""

    def __call__(self, state: State) -> None:
        last = self.state
        if last is None or state.step != last.step or state.done < last.done:
            self._began, self._first = self._clock(), state.done
        if last is None or state.step != last.step:
            self._result = ""
        self._result = state.result or self._result
        self.state = state
        if state.result and self.keeps_results:
            _print(f"{self.name}: {state.result}")
        self._show(self)

    @property
    def name(self) -> str:
        """Title and step."""
        assert self.state is not None
        return f"{self.title}: {self.state.step}" if self.title else self.state.step

    @property
    def details(self) -> str:
        """What is worked on, how fast, and the last result."""
        state = self.state
        assert state is not None
        seconds, done = self._clock() - self._began, state.done - self._first
        speed = f"{_rounded(done / seconds)} {state.unit}/s" if done and seconds > 0 else ""
        result = "" if self.keeps_results else self._result
        return ", ".join(filter(None, (state.note, speed, result)))

    def line(self) -> str:
        """The state in one line, and how long the step has taken since it last began to count."""
        state = self.state
        assert state is not None
        count = f"{state.done:,}" if state.total is None else f"{state.done:,} of {state.total:,}"
        parts = [f"{count} {state.unit}"] if state.unit else []
        parts += [*filter(None, [self.details]), f"{self._clock() - self._began:,.0f} s"]
        return f"{self.name}: {', '.join(parts)}"

    def tick(self) -> None:
        """Print the line, once there is something to say."""
        if self.state is not None:
            _print(self.line())


@contextmanager
def _shown(title: str = "") -> Iterator[Display]:
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(title, total=None, note="")
            yield Display(title, show=partial(_draw, bar, task))
        return
    display, ended = Display(title), Event()
    thread = Thread(target=_beat, args=(display, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield display
    finally:
        ended.set()
        thread.join()


def _beat(display: Display, ended: Event) -> None:
    while not ended.wait(EVERY_S):
        display.tick()


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _draw(bar: Progress, task: TaskID, display: Display) -> None:
    state = display.state
    assert state is not None
    if bar.tasks[0].description != display.name:  # times are those of the step
        bar.reset(task)
    bar.update(
        task,
        description=display.name,
        completed=state.done,
        total=state.total,
        note=display.details,
    )


def _rounded(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _print(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
