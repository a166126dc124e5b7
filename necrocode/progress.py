"""What a person sees of a run: a live picture on a terminal, one line per change elsewhere, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from necrocode.outcome import Outcome
from necrocode.plan import PlanRow
from necrocode.runs import Plan

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_QUIET = ("granted", "prepare", "verify", "commit", "artifacts", "work")
"""Changes that are seen in the live picture, and are too small for a line of their own."""
_WORDS = {
    "prepare": "preparing",
    "work": "working",
    "verify": "verifying",
    "commit": "committing",
    "artifacts": "finishing",
}
_COLOURS = {
    "done": "green", "failed": "red", "timed_out": "red", "lost": "red", "cancelled": "yellow", "waiting": "yellow",
    "behind": "yellow", "retrying": "yellow", "stopping": "yellow",
}  # fmt: skip


class Progress:
    """Listens to a fleet. `quiet` keeps everything but the end to itself."""

    def __init__(self, plan: Plan, console: Console, *, quiet: bool = False) -> None:
        self._plan, self._console, self._quiet = plan, console, quiet
        self._began = time.monotonic()
        self._states: dict[str, tuple[str, float, str]] = {}
        self._finished: dict[str, str] = {}
        self._avoided = self._waits = 0
        self._live = console.is_terminal and not quiet

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the live picture while its body runs, when there is a terminal to show it on."""
        if not self._live:
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True):
            yield

    def heard(self, task_id: str, what: str, facts: Mapping[str, Any]) -> None:
        """What a Fleet tells its listener."""
        detail = str(facts.get("detail") or facts.get("reason") or facts.get("error") or "")
        if what == "behind":
            self._avoided += 1
            detail = f"{', '.join(facts['claims'])}: {facts['after']} goes first"
        self._waits += what == "waiting"
        word = facts.get("status", what) if what == "finished" else what
        if what in ("finished", "cancelled"):
            self._states.pop(task_id, None)
            self._finished[task_id] = str(word)
        elif task_id and not (what == "behind" and task_id in self._states):
            began = self._states[task_id][1] if task_id in self._states else time.monotonic()
            self._states[task_id] = (what, began, detail)
        if (not self._live and not self._quiet and what not in _QUIET) or (
            self._live and word in ("failed", "timed_out", "cancelled", "lost")
        ):
            self._line(task_id, str(word), detail)

    def _line(self, task_id: str, word: str, detail: str) -> None:
        from rich.markup import escape

        elapsed = duration(time.monotonic() - self._began)
        colour = _COLOURS.get(word, "default")
        text = f"{elapsed:>7}  [{colour}]{word:<9}[/]  {escape(task_id)}" + (
            f"  [dim]{escape(detail)}[/]" if detail else ""
        )
        self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        done, total = len(self._finished), len(self._plan.tasks)
        failed = sum(word != "done" for word in self._finished.values())
        working = sum(what not in ("behind", "waiting", "retrying") for what, _, _ in self._states.values())
        bar = "#" * (30 * done // max(1, total))
        head = f"run {self._plan.run_id}  [{bar:-<30}] {done}/{total} done  {working} running of {self._plan.jobs}"
        head += f"  {failed} failed" if failed else ""
        took = duration(time.monotonic() - self._began)
        foot = f"{took}   conflicts avoided {self._avoided}   waits {self._waits}   ^C finish running, ^C^C stop"
        lines = (Text(text, style, no_wrap=True, overflow="ellipsis") for text, style in ((head, ""), (foot, "dim")))
        return Group(next(lines), self._table(), next(lines))

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False, expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        # Those that work come first: on a screen with few lines they are what one looks for.
        rows = sorted(self._states.items(), key=lambda row: (row[1][0] in ("behind", "retrying"), row[1][1]))
        room = max(3, self._console.height - 4)
        for task_id, (what, began, detail) in rows[:room]:
            table.add_row(
                task_id,
                _WORDS.get(what, what),
                duration(time.monotonic() - began),
                detail,
                style=_COLOURS.get(what, ""),
            )
        if len(rows) > room:
            table.add_row("", f"and {len(rows) - room} more", "", "")
        return table


def summary(plan: Plan, outcomes: Mapping[str, Outcome]) -> Table:
    """How every task of a run ended: what changed, on which branch, and what to look at next."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("TASK", "left"),
        ("ENDED", "left"),
        ("TIME", "right"),
        ("WAITED", "right"),
        ("CHANGED", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("BRANCH OR REASON", overflow="fold")
    for task in plan.tasks:
        outcome = outcomes.get(task.id)
        if outcome is None:
            table.add_row(task.id, "not begun", "", "", "", "")
            continue
        changed = f"+{outcome.lines_added} -{outcome.lines_removed}" if outcome.files_changed else ""
        where = (
            (outcome.branch if outcome.commits else "nothing to commit" if outcome.branch else "")
            if outcome.ok
            else outcome.error
        )
        word = Text(str(outcome.status), style=_COLOURS.get(outcome.status, ""))
        waited = duration(outcome.waited) if outcome.waited >= 0.05 else ""
        table.add_row(task.id, word, duration(outcome.seconds), waited, changed, where)
    return table


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3:07, 2:15:01."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rehearsal(plan: Plan, rows: Sequence[PlanRow]) -> Table:
    """What a run would do: when each task starts, what it claims, and what it is put in line behind."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("WAVE", "TASK", "AFTER", "CLAIMS", "IN LINE BEHIND"):
        table.add_column(name, overflow="fold")
    for row in rows:
        claims = ", ".join(map(str, plan.claims[row.task_id]))
        behind = ", ".join(f"{one.after} ({one.wanted})" for one in row.behind)
        table.add_row(str(row.wave or "never"), row.task_id, ", ".join(row.after), claims, behind or row.never)
    return table


def console_on(stream: IO[str], colored: bool) -> Console:
    """A console on that stream, with colours or without."""
    from rich.console import Console

    return Console(file=stream, no_color=not colored)
