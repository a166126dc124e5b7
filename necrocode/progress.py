"""What a person sees of a run: a live picture on a terminal, one line per change elsewhere, a table at the end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from necrocode import journal
from necrocode.outcome import Outcome, Status
from necrocode.plan import PlanRow
from necrocode.runs import Plan, run_folder
from necrocode.screen import Column, Row, clean, counted, duration, styled, table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from necrocode.statedir import StateDir

_MOST_KEPT = 5
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

    def __init__(self, plan: Plan, console: Console | Lines, *, quiet: bool = False) -> None:
        self._plan, self._console, self._quiet = plan, console, quiet
        self._began = time.monotonic()
        self._states: dict[str, tuple[str, float, str]] = {}
        self._finished: dict[str, str] = {}
        self._avoided = self._waits = 0
        self._live = console.is_terminal and not quiet

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the live picture while its body runs, when there is a terminal to show it on."""
        if not self._live or isinstance(self._console, Lines):
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True):
            yield

    def begin(self) -> None:
        """Say which run this is: whoever has to go on with it needs the name."""
        if not self._quiet:
            self._print(f"run {self._plan.run_id}: {counted(len(self._plan.tasks), 'task')}, {self._plan.jobs} at once")

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
        elapsed = duration(time.monotonic() - self._began)
        if isinstance(self._console, Lines):
            return self._print(f"{elapsed:>7}  {word:<9}  {task_id}" + (f"  {detail}" if detail else ""))
        from rich.markup import escape

        colour = _COLOURS.get(word, "default")
        text = f"{elapsed:>7}  [{colour}]{word:<9}[/]  {escape(task_id)}" + (
            f"  [dim]{escape(detail)}[/]" if detail else ""
        )
        return self._print(text)

    def _print(self, text: str) -> None:
        try:
            self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)
        except (OSError, SystemExit):
            # Whoever read it has gone (rich ends the program then), or the disk is full: the run goes on unseen.
            self._quiet = True

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        took = duration(time.monotonic() - self._began)
        foot = f"{took}   conflicts avoided {self._avoided}   waits {self._waits}   ^C finish running, ^C^C stop"
        lines = ((self._head(), ""), (foot, "dim"))
        head, last = (Text(text, style, no_wrap=True, overflow="ellipsis") for text, style in lines)
        return Group(head, self._table(), last)

    def _head(self) -> str:
        """The run in one line; where the line is short, the bar gives way and the counts stay."""
        ended, total = len(self._finished), len(self._plan.tasks)
        failed = sum(word != "done" for word in self._finished.values())
        working = sum(what not in ("behind", "waiting", "retrying") for what, _, _ in self._states.values())
        name, counts = f"run {self._plan.run_id}  ", f"{ended}/{total} ended  {working} of {self._plan.jobs} running"
        counts += f"  {failed} not done" if failed else ""
        room = min(30, self._console.width - len(name) - len(counts) - 3)
        return f"{name}[{'#' * (room * ended // max(1, total)):-<{room}}] {counts}" if room >= 5 else name + counts

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


_SUMMARY = (
    Column("TASK", 9, least=8), Column("ENDED", 8, least=9), Column("TIME", 5, right=True),
    Column("WAITED", 4, right=True), Column("CHANGED", 3, right=True), Column("BRANCH", 6, least=12, tail=True),
    Column("REASON", 7, least=16),
)  # fmt: skip
_PLAN = (
    Column("WAVE", 9), Column("TASK", 9, least=8), Column("AFTER", 6, least=8), Column("CLAIMS", 5, least=12),
    Column("IN LINE BEHIND", 7, least=14),
)  # fmt: skip


class Kept(NamedTuple):
    """A workspace that stays, and why."""

    task_id: str
    path: str
    reason: str


def kept(state: StateDir, plan: Plan) -> list[Kept]:
    """The workspaces of a run that its attempts left, as far as they are still there."""
    if not any(os.path.isdir(plan.place(task)) for task in plan.tasks if plan.mode_of(task) != "none"):
        return []
    found = {
        event.task_id: Kept(event.task_id, path, str(event.facts.get("reason", "")).removeprefix(f"{path} was kept: "))
        for event in journal.read(state.events, _since(state, plan), kind="workspace.kept", run_id=plan.run_id)
        if (path := str(event.facts.get("path")))
    }
    return [one for one in found.values() if os.path.isdir(one.path)]


def _since(state: StateDir, plan: Plan) -> float | None:
    """When the run was begun: no event of it is older."""
    try:
        return (run_folder(state, plan.run_id) / "plan.json").stat().st_mtime - 60.0
    except OSError:
        return None


def summary(
    plan: Plan, outcomes: Mapping[str, Outcome], width: int, *, colored: bool, kept: Iterable[Kept] = ()
) -> list[str]:
    """How every task of a run ended, as lines: what changed, on which branch where that is not the usual one, and why
    if not. What is not done stands last, next to where one goes on typing."""
    ended = sorted(((task.id, outcomes.get(task.id)) for task in plan.tasks), key=_is_not_done)
    stays = {one.task_id for one in kept}
    rows = [_ended(task_id, outcome, plan.branches, task_id in stays) for task_id, outcome in ended]
    return table(_SUMMARY, rows, width, colored=colored)


def _is_not_done(ended: tuple[str, Outcome | None]) -> bool:
    return ended[1] is None or not ended[1].ok


def _ended(task_id: str, outcome: Outcome | None, branches: str, stays: bool) -> Row:
    if outcome is None:
        return Row((task_id, "not begun", "", "", "", "", ""), "dim")
    changed = f"+{outcome.lines_added} -{outcome.lines_removed}" if outcome.files_changed else ""
    waited = duration(outcome.waited) if outcome.waited >= 0.05 else ""
    branch = outcome.branch if outcome.commits and outcome.branch != f"{branches}{task_id}" else ""
    nothing = "" if outcome.commits or not outcome.branch else "nothing to commit"
    reason = outcome.error if not outcome.ok else "its workspace was kept" if stays else nothing
    took = duration(outcome.seconds) if outcome.attempt else ""
    style = "" if outcome.ok else _COLOURS.get(outcome.status, "")
    return Row((task_id, str(outcome.status), took, waited, changed, branch, reason), style)


def closing(plan: Plan, outcomes: Mapping[str, Outcome], *, colored: bool, kept: Sequence[Kept] = ()) -> Iterator[str]:
    """The run in a line, where its work is, and what to type next."""
    statuses = Counter(str(outcome.status) for outcome in outcomes.values())
    statuses["not begun"] = len(plan.tasks) - len(outcomes)
    words = [
        styled(f"{count} {status}", _COLOURS.get(status, ""), colored) for status, count in statuses.items() if count
    ]
    yield f"run {plan.run_id}: {counted(len(plan.tasks), 'task')}, {', '.join(words)}"
    odd = [one for one in kept if (outcome := outcomes.get(one.task_id)) and outcome.ok]
    if any(outcome.commits and outcome.branch.startswith(plan.branches) for outcome in outcomes.values()):
        what = "what was committed" if odd else "the work of each"
        yield f"{what} is on its branch: {plan.branches}TASK"
    yield from (clean(f"kept: {one.path}: {one.reason}") for one in odd[:_MOST_KEPT])
    if kept:
        yield "look into what was kept; necrocode gc shows all of it, and what may go"
    bad = [outcome for outcome in outcomes.values() if not outcome.ok]
    failed = next((outcome for outcome in bad if outcome.attempt and outcome.status is not Status.CANCELLED), None)
    if failed:
        look = f"necrocode {'logs' if failed.ran else 'why'} {plan.run_id}/{failed.task_id}"
        yield f"see: {look}   then: necrocode retry {plan.run_id}"
    elif bad or statuses["not begun"]:
        yield f"go on with: necrocode run --resume {plan.run_id}"


def rehearsal(plan: Plan, rehearsed: Sequence[PlanRow], width: int, *, colored: bool) -> list[str]:
    """What a run would do, as lines: when each task starts, what it claims, and what it is put in line behind."""
    rows = []
    for row in rehearsed:
        claims = ", ".join(map(str, plan.claims[row.task_id]))
        behind = ", ".join(f"{one.after} ({one.wanted})" for one in row.behind)
        wave = str(row.wave) if row.wave else "never"
        rows.append(Row((wave, row.task_id, ", ".join(row.after), claims, behind or row.never)))
    return table(_PLAN, rows, width, colored=colored)


class Lines:
    """Where there is no terminal: lines as they are, without loading what draws on one."""

    is_terminal, width, height = False, 80, 24

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def print(self, text: str, **_: object) -> None:
        self._stream.write(f"{clean(text)}\n")
        self._stream.flush()


def console_on(stream: IO[str], colored: bool) -> Console | Lines:
    """A console on that stream, with colours or without."""
    if not stream.isatty():
        return Lines(stream)
    from rich.console import Console

    return Console(file=stream, no_color=not colored)
