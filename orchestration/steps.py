"""Steps of a long job on a terminal: what runs now with its bar, what is done with the seconds it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Step:
    """One running step; several may run at the same time, each in its own thread."""

    def __init__(self, bars: Progress, task: TaskID, title: str) -> None:
        self._bars, self._task, self._title = bars, task, title
        self.result = ""

    def say(self, detail: str) -> None:
        """Show what the step is at."""
        self._bars.update(self._task, description=f"{self._title}: {escape(detail)}")

    def advance(self, more: int, total: int) -> None:
        """Move the step's bar."""
        self._bars.update(self._task, total=total or None)
        self._bars.advance(self._task, more)

    def done(self, result: str) -> None:
        """Say what the finished step found or made."""
        self.result = result


class Steps:
    """Prints steps as they finish; a terminal also sees those that run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True)
        self.begun = time.monotonic()

    def __enter__(self) -> Steps:
        """Begin to show."""
        self.begun = time.monotonic()
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear what is still shown."""
        self._bars.__exit__(kind, error, trace)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step while its body runs; one that raises is marked as failed and raises."""
        task = self._bars.add_task(title, total=None)
        step = Step(self._bars, task, title)
        begun = time.monotonic()
        mark = "[red]x[/]"
        try:
            yield step
            mark = "[green]✓[/]"
        finally:
            self._bars.remove_task(task)
            result = f": {escape(step.result)}" if step.result else ""
            with self._lock:
                seconds = time.monotonic() - begun
                self._console.print(f"{mark} {title}{result} [dim]({seconds:.1f} s)[/]", highlight=False)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.begun
