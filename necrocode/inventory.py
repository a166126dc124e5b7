"""The checks of `necrocode doctor` that concern what lies in the state directory: settings, records, runs, leases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from necrocode import cleaning, lookup, runs
from necrocode.board import left_behind
from necrocode.errors import ConfigError, StateUnreadable
from necrocode.ledger.files import FileLedger
from necrocode.ledger.terms import read_terms
from necrocode.machine import Finding
from necrocode.order import put_aside, taken_by
from necrocode.screen import counted, duration
from necrocode.statedir import StateDir

Look = Callable[[], Iterator[Finding]]


def looks(ledger: FileLedger, where: Path) -> Iterator[tuple[str, Look]]:
    """Each check by its name; `where` is the place whose workspaces are looked at too."""
    state = ledger.state
    yield "settings", lambda: _settings(ledger)
    yield "records", lambda: _records(ledger)
    yield "plans", lambda: _plans(state)
    yield "attempts", lambda: _attempts(state)
    yield "quarantine", lambda: _quarantine(state)
    yield "leases", lambda: _leases(ledger)
    yield "left over", lambda: _left_over(ledger, where)


def _settings(ledger: FileLedger) -> Iterator[Finding]:
    path = ledger.state.root / "config.json"
    try:
        limit, quotas = read_terms(path)
    except StateUnreadable as error:
        yield Finding("settings", False, str(error), f"rm {path}, and set the limit again")
        return
    told = [f"limit {limit or 'none'}", *(f"quota {name} {count}" for name, count in quotas.items())]
    yield Finding("settings", True, ", ".join(told))


def _records(ledger: FileLedger) -> Iterator[Finding]:
    broken = [name for name in ledger.snapshot().unreadable if name != "config.json"]
    if broken:
        fix = "necrocode doctor --fix moves those of the dead to quarantine"
        yield Finding("records", False, f"cannot be read: {', '.join(broken[:5])}", fix, ledger.sweep)
    else:
        yield Finding("records", True, "all can be read")


def _plans(state: StateDir) -> Iterator[Finding]:
    broken = {run_id: error for run_id in runs.runs(state) if (error := _unreadable(state, run_id))}
    if broken:
        said = f"of {counted(len(broken), 'run')} cannot be read: {', '.join(list(broken)[:5])}"
        fix = "necrocode doctor --fix moves them to quarantine; what was done is on the branches"
        yield Finding("plans", False, said, fix, lambda: _put_aside(state, broken))
    else:
        yield Finding("plans", True, "all can be read")


def _unreadable(state: StateDir, run_id: str) -> StateUnreadable | None:
    try:
        runs.Plan.load(state, run_id)
    except StateUnreadable as error:
        return error
    except ConfigError:  # it went meanwhile
        return None
    return None


def _put_aside(state: StateDir, broken: dict[str, StateUnreadable]) -> None:
    for run_id, error in broken.items():
        put_aside(state, run_id, error)


def _attempts(state: StateDir) -> Iterator[Finding]:
    broken = [found for run_id in runs.runs(state) for found in _of_nobody(state, run_id)]
    if broken:
        files = ", ".join(str(Path(error.path).relative_to(state.root)) for _, error in broken[:3])
        said = f"who carried {counted(len(broken), 'attempt')} cannot be read: {files}"
        fix = f"necrocode doctor --fix moves it to quarantine, then: necrocode run --resume {broken[0][0]}"
        yield Finding("attempts", False, said, fix, lambda: _put_carriers_aside(state, broken))
    else:
        yield Finding("attempts", True, "who carries them can be read")


def _of_nobody(state: StateDir, run_id: str) -> Iterator[tuple[str, StateUnreadable]]:
    with suppress(FileNotFoundError):  # the run went meanwhile
        for _, folder in chain(*runs.attempts_of_all(state, run_id).values()):
            try:
                taken_by(folder)
            except StateUnreadable as error:
                yield run_id, error


def _put_carriers_aside(state: StateDir, broken: list[tuple[str, StateUnreadable]]) -> None:
    """Those of runs that nobody follows: who follows one does it when it has to know."""
    for run_id, error in broken:
        if not lookup.launcher_lives(state, run_id):
            put_aside(state, run_id, error)


def _quarantine(state: StateDir) -> Iterator[Finding]:
    found = sorted(os.listdir(state.quarantine_folder))
    if found:
        said = f"{counted(len(found), 'file')} could not be read once: {', '.join(found[:3])}"
        yield Finding("quarantine", False, said, f"look at them, then: rm {state.quarantine_folder}/*")
    else:
        yield Finding("quarantine", True, "empty")


def _leases(ledger: FileLedger) -> Iterator[Finding]:
    snapshot = ledger.snapshot()
    dead = [seen.record.runner_id for seen in snapshot.runners if seen.liveness == "dead"]
    dead += [waiter.record.runner_id for waiter in snapshot.waiting if waiter.liveness == "dead"]
    if dead:
        said = f"left by the dead: {', '.join(dead[:5])}"
        yield Finding("leases", False, said, "necrocode gc --yes", ledger.sweep)
    for seen in snapshot.runners:
        name = seen.record.runner_id
        if seen.orphaned:
            yield Finding("leases", False, f"{name}: {left_behind(seen)}", f"necrocode stop {name}")
        elif seen.liveness != "dead" and (seen.liveness == "silent" or seen.state == "fenced"):
            silent = f"has given no heartbeat for {duration(seen.silent or 0.0)}"
            yield Finding("leases", False, f"{name} {silent}, but lives", f"necrocode stop {name}")
    if not dead:
        yield Finding("leases", True, f"{counted(snapshot.live, 'runner')}, {len(snapshot.waiting)} waiting")


def _left_over(ledger: FileLedger, where: Path) -> Iterator[Finding]:
    things = [one for one in cleaning.survey(ledger, where) if one.kind in ("workspace", "trash")]
    if stale := [one.name for one in things if not one.keep]:
        said = f"{counted(len(stale), 'place')} of runners that are gone: {', '.join(stale[:3])}"
        yield Finding("left over", False, said, "necrocode gc, then necrocode gc --yes")
    kept = len(things) - len(stale)
    if not stale:
        yield Finding("left over", True, f"{counted(kept, 'workspace')} in use or kept")
