"""Ending what others started: a runner is asked first, and when it does not answer its tree is ended by its mark."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

from necrocode import journal, launcher, lookup, process, remains, runs
from necrocode.clock import monotonic
from necrocode.lease import Identity
from necrocode.ledger import lifeline
from necrocode.ledger.files import FileLedger
from necrocode.lookup import Found
from necrocode.process import who
from necrocode.statedir import mark

_LAST_WORDS = 5.0
"""Seconds that a runner has, once its tree is gone, to write its result."""
_LOOK = 0.05


class Target(NamedTuple):
    """One process to ask: that of a runner or waiter, or (without `runner_id`) the launcher of a run. `state` is
    running, fenced, waiting or launching."""

    name: str
    holder: Identity | None
    state: str
    runner_id: str = ""
    run_id: str = ""


class Stopped(NamedTuple):
    """How one target ended: `how` is asked, killed, gone (its process had ended before), orphaned (it had, and left
    others that were ended) or alive; `survivors` are pids that could not be ended."""

    name: str
    state: str
    how: str
    seconds: float
    survivors: tuple[int, ...] = ()


def targets(ledger: FileLedger, found: Iterable[Found] | None) -> list[Target]:
    """Those that are there now and belong to what was found (None: to anything)."""
    snapshot = ledger.snapshot()
    records = [(seen.record, seen.state) for seen in snapshot.runners]
    # A runner that waits for more is among the runners already.
    records += [(waiter.record, "waiting") for waiter in snapshot.waiting if not waiter.adding]
    runners = [
        Target(record.runner_id, record.holder, state, record.runner_id, record.details.get("run_id", ""))
        for record, state in records
    ]
    run_ids = (
        runs.runs(ledger.state) if found is None else [one.run_id for one in found if one.run_id and not one.task_id]
    )
    launchers = [one for run_id in run_ids if (one := _launcher(ledger, run_id))]
    if found is None:
        return launchers + runners
    return launchers + [one for one in runners if any(_belongs(one, wanted) for wanted in found)]


def _belongs(target: Target, found: Found) -> bool:
    if found.runner_id:
        return target.runner_id == found.runner_id
    name = f"{found.run_id}.{found.task_id}." if found.task_id else f"{found.run_id}."
    if target.run_id != found.run_id or not target.runner_id.startswith(name):
        return False
    number = target.runner_id.removeprefix(name)
    return not found.task_id or (number == str(found.attempt) if found.attempt else number.isdigit())


def _launcher(ledger: FileLedger, run_id: str) -> Target | None:
    if not lookup.launcher_lives(ledger.state, run_id):
        return None
    holder = launcher.named(runs.run_folder(ledger.state, run_id) / "launcher.json")
    return Target(f"launcher of {run_id}", holder, "launching", run_id=run_id)


def stop(ledger: FileLedger, chosen: list[Target], grace: float) -> list[Stopped]:
    """Ask all of them to end; end the trees of those that have not after `grace` seconds, then the runners too.

    A run with a launcher is asked through it alone: it then asks its runners. Returns how each ended."""
    began = monotonic()
    # One that nobody can name cannot be asked, and asks nobody.
    launched = {target.run_id for target in chosen if target.state == "launching" and target.holder}
    stopping = [_Stopping(ledger, target, began, grace) for target in chosen]
    for one in stopping:
        _tell(ledger, one.target)
        one.ask(through_launcher=bool(one.target.runner_id) and one.target.run_id in launched)
    while any(one.how == "" for one in stopping):
        for one in stopping:
            one.look(monotonic())
        time.sleep(_LOOK)
    ledger.sweep()
    for one in stopping:
        one.clear_up()
    return [one.stopped() for one in stopping]


def _tell(ledger: FileLedger, target: Target) -> None:
    by = f"{process.identity().user}, pid {os.getpid()}"
    event = journal.make("stop.asked", runner_id=target.runner_id, run_id=target.run_id, by=by)
    journal.append(ledger.state.events, [event])


class _Stopping:
    """One target on its way to its end."""

    def __init__(self, ledger: FileLedger, target: Target, began: float, grace: float) -> None:
        self.target, self.how = target, ""
        self._state, self._began, self._grace = ledger.state, began, grace
        self._asked = self._struck = self._forced = False
        self._seconds = 0.0
        self._survivors: tuple[int, ...] = ()

    def ask(self, *, through_launcher: bool) -> None:
        if through_launcher:
            self._asked = True
        elif self.target.holder and _in_reach(self.target.holder) and not process.is_gone(self.target.holder):
            self._asked = who.send(self.target.holder.pid, self.target.holder.start_ticks, signal.SIGTERM)

    def look(self, now: float) -> None:
        if self.how:
            return None
        waited = now - self._began
        if not self._alive():
            return self._settled(self._how(), waited)
        if not self._struck and (waited >= self._grace or not self._asked):
            self._strike(self._grace if not self._asked else 0.0)
        elif self._struck and waited >= self._grace + _LAST_WORDS:
            if self.target.holder:
                self._forced |= process.kill_holder(self.target.holder)
            if waited >= self._grace + 2 * _LAST_WORDS:
                self._settled("alive", waited)
        return None

    def _how(self) -> str:
        if self._asked or not self.target.runner_id:  # a launcher was there, whoever brought about its end
            return "killed" if self._forced else "asked"
        return "orphaned" if self._forced else "gone"

    def _strike(self, grace: float) -> None:
        """End the tree; the runner itself, which does not carry the mark, gets a moment to tell of it."""
        self._struck = True
        if self.target.runner_id:  # a launcher has no tree of its own: it ends when its runners have
            self._forced = True
            self._survivors = process.end_tree(mark(self._state.root, self.target.runner_id), grace=grace)

    def _alive(self) -> bool:
        if self.target.runner_id:
            return lifeline.is_held(self._state.live / self.target.runner_id)
        return lookup.launcher_lives(self._state, self.target.run_id)

    def _settled(self, how: str, seconds: float) -> None:
        self.how, self._seconds = how, seconds

    def clear_up(self) -> None:
        """Remove the TMPDIR of a runner that could not do it itself."""
        folder = runs.run_folder(self._state, self.target.run_id) / self.target.runner_id.removeprefix(
            f"{self.target.run_id}."
        )
        if self.target.runner_id and self.how != "alive" and not self._survivors and folder.is_dir():
            remains.clear_after(folder)

    def stopped(self) -> Stopped:
        return Stopped(self.target.name, self.target.state, self.how, self._seconds, self._survivors)


def _in_reach(holder: Identity) -> bool:
    """Whether that process's number means the same here."""
    ours = process.identity()
    return holder[2:5] == ours[2:5]
