"""Callbacks: what a benchmark tells while it runs, one call at a time, in the thread that called `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from necrocode.benchmark.suite import Benchmark
    from necrocode.benchmark.tasks import Task

Report = dict[str, Any]


class BenchmarkCallback:
    """Override what you want to hear. What a callback raises is logged, and disturbs neither the run nor the others."""

    def on_run_start(self, benchmark: Benchmark) -> None:
        """Once, before anything else."""

    def on_task_start(self, benchmark: Benchmark, task: Task) -> None:
        """Before the first repetition of a task."""

    def on_task_repeat_start(self, benchmark: Benchmark, task: Task, repeat_idx: int) -> None:
        """Before each repetition; further attempts at it are not told."""

    def on_task_repeat_end(self, benchmark: Benchmark, report: Report) -> None:
        """After each repetition."""

    def on_task_end(self, benchmark: Benchmark, task: Task, report: Report) -> None:
        """After the last repetition of a task that was started, with the report of that one."""

    def on_run_end(self, benchmark: Benchmark, results: Sequence[Mapping[str, Any]]) -> None:
        """Once, at the end, however the run ended, with all reports."""


class ProgressBar(BenchmarkCallback):
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar: Any = None

    def on_run_start(self, benchmark: Benchmark) -> None:
        import sys

        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(type(benchmark).__name__, total=self._total)

    def on_task_repeat_end(self, benchmark: Benchmark, report: Report) -> None:
        if self._bar:
            self._bar.advance(self._task)

    def on_run_end(self, benchmark: Benchmark, results: Sequence[Mapping[str, Any]]) -> None:
        if self._bar:
            self._bar.stop()
