"""What is left over and could go: dead leases, workspaces of the dead, old runs, events, quarantine, trash.

`survey` looks, `Thing.remove` does it; in between a person may read the list. Work that is nowhere else is kept, or,
when told otherwise, saved as a snapshot first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from necrocode import git, journal, lookup, process, runs, scratch, workspace
from necrocode.board import KEEP_SECONDS
from necrocode.claim import Claim
from necrocode.errors import ConfigError, GitFailed, NecrocodeError, StateUnreadable
from necrocode.event import Event
from necrocode.lease import Request
from necrocode.ledger import lifeline
from necrocode.ledger.files import FileLedger
from necrocode.order import taken_by
from necrocode.screen import counted, duration
from necrocode.statedir import StateDir, mark
from necrocode.workspace import Leftover

_JUST_NOW = 60.0
"""Seconds in which somebody may still be at it: trash that is being made, a file that is being moved."""


class Thing(NamedTuple):
    """One thing that is left over. `keep` says why it stays ("" when it may go), `why` what it is; `remove` takes it
    away and returns what else is worth telling."""

    kind: str
    name: str
    why: str
    keep: str
    remove: Callable[[], str]


def survey(ledger: FileLedger, where: Path, *, older: float = KEEP_SECONDS, force: bool = False) -> list[Thing]:
    """All that is left over in the state directory and in the repositories of its runs, and in that of `where`.

    `older` is in seconds, for what only ages; `force` also takes workspaces with work that is nowhere else."""
    state = ledger.state
    plans = {run_id: plan for run_id in runs.runs(state) if (plan := _plan(state, run_id))}
    workspaces = list(_workspaces(ledger, plans.values(), where, force))
    kept = [thing.name for thing in workspaces if thing.keep]
    return [
        *_leases(ledger),
        *workspaces,
        *_scratch(ledger),
        *_trash(plans.values()),
        *_old_runs(state, plans, kept, older),
        *_old_files(state, older),
    ]


def _plan(state: StateDir, run_id: str) -> runs.Plan | None:
    try:
        return runs.Plan.load(state, run_id)
    except NecrocodeError:
        return None


# -- leases


def _leases(ledger: FileLedger) -> Iterator[Thing]:
    snapshot = ledger.snapshot()
    gone = [("lease", seen.record) for seen in snapshot.runners if seen.liveness == "dead"]
    gone += [("waiter", waiter.record) for waiter in snapshot.waiting if waiter.liveness == "dead"]
    for kind, record in gone:
        pid = f"pid {record.holder.pid} " if record.holder else "its process "
        yield Thing(kind, record.runner_id, f"{pid}has ended", "", lambda: _swept(ledger))
    for seen in snapshot.runners:
        if seen.liveness == "silent" and seen.state == "running":
            why = f"no heartbeat for {duration(seen.silent or 0.0)}"
            yield Thing("lease", seen.record.runner_id, why, "its process lives: necrocode stop ends it", _nothing)


def _swept(ledger: FileLedger) -> str:
    ledger.sweep()
    return ""


def _nothing() -> str:
    return ""


# -- workspaces


def _workspaces(ledger: FileLedger, plans: Iterable[runs.Plan], where: Path, force: bool) -> Iterator[Thing]:
    state, holding, seen = ledger.state, _holding(ledger), set()
    for place in [*(plan.repository for plan in plans if plan.repository), str(where)]:
        try:
            repository = git.open_repository(place)
        except (ConfigError, GitFailed, OSError):
            continue
        if repository.common_dir in seen:
            continue
        seen.add(repository.common_dir)
        for left in workspace.list_leftovers(repository, state.root):
            keep = _why_keep(state, left, holding) or _unsafe(left, force)
            yield Thing("workspace", str(left.workspace.path), _about(left), keep, _removal(ledger, left, force))


def _holding(ledger: FileLedger) -> set[str]:
    """The runners that may be in their workspaces: all whose lifeline is held, those that wait included."""
    return {name for name in lookup.runner_ids(ledger.state) if lifeline.is_held(ledger.state.live / name)}


def _why_keep(state: StateDir, left: Leftover, holding: set[str]) -> str:
    """Why a workspace must not be touched, whatever is asked for."""
    if left.holder in holding:
        return f"{left.holder} works in it"
    run_id = left.holder.partition(".")[0]
    if (runs.run_folder(state, run_id) / "plan.json").exists() and lookup.launcher_lives(state, run_id):
        return f"run {run_id} goes on"
    if not _is_known(state, left.holder):
        return f"{left.holder or 'its holder'} is not known to this state directory; another one may know it"
    if busy := _busy(left):
        return f"processes are in it: pid {', '.join(map(str, busy[:5]))}"
    return ""


def _is_known(state: StateDir, holder: str) -> bool:
    run_id, _, attempt = holder.partition(".")
    if attempt and (runs.run_folder(state, run_id) / attempt).is_dir():
        return True
    return next(journal.read(state.events, runner_id=holder), None) is not None


def _busy(left: Leftover) -> list[int]:
    inside = [] if left.missing else _working_in(left.workspace.path)
    return sorted({*process.marked(mark(left.workspace.state_root, left.holder)), *inside})


def _working_in(directory: Path) -> Iterator[int]:
    """The pids of processes that stand in a directory, where the system tells."""
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        with suppress(OSError):
            if name.isdigit() and Path(os.readlink(f"/proc/{name}/cwd")).is_relative_to(directory):
                yield int(name)


def _unsafe(left: Leftover, force: bool) -> str:
    if left.unsavable:
        return f"{left.unsavable} (move it elsewhere first)"
    if force:
        return ""
    if left.dirty and not left.missing:
        return "it has uncommitted work (--force saves it as a snapshot, and removes it)"
    if left.ahead and not left.missing:
        commits = counted(left.ahead, "commit")
        return f"{commits} of {left.workspace.branch} have not landed (--force removes the directory; the branch stays)"
    return ""


def _about(left: Leftover) -> str:
    state = "its directory is gone" if left.missing else "uncommitted work" if left.dirty else "clean"
    ahead = f", {counted(left.ahead, 'commit')} on {left.workspace.branch}" if left.ahead else ""
    return f"of {left.holder or 'an unknown holder'}, {state}{ahead}"


def _removal(ledger: FileLedger, left: Leftover, force: bool) -> Callable[[], str]:
    def remove() -> str:
        # Claimed meanwhile, so that nobody begins to work in it: whoever does already is in the way here.
        wanted = Request(
            f"gc-{os.getpid()}-{os.urandom(3).hex()}", (Claim.workspace(str(left.workspace.path)),), slot=False
        )
        lease = ledger.register(wanted)
        try:
            saved = workspace.retire(left.workspace, landed=False, force=force)
        finally:
            ledger.release(lease)
        path = str(left.workspace.path)
        told = [_saved(left, ref) for ref in saved]
        journal.append(
            ledger.state.events, [*told, journal.make("workspace.removed", runner_id=left.holder, path=path)]
        )
        return f"saved as {', '.join(saved)}" if saved else ""

    return remove


def _saved(left: Leftover, ref: str) -> Event:
    commit = git.rev_parse(ref, cwd=left.workspace.repo.common_dir)
    return journal.make("snapshot.taken", runner_id=left.holder, ref=ref, commit=commit)


def _scratch(ledger: FileLedger) -> Iterator[Thing]:
    """The TMPDIRs of attempts that nobody carries any more; one may have served several attempts of one runner."""
    state, holding = ledger.state, _holding(ledger)
    found: dict[str, list[str]] = {}
    for run_id in sorted(os.listdir(state.runs)):
        for _, folder in chain(*runs.attempts_of_all(state, run_id).values()):
            runner_id = f"{run_id}.{folder.name}"
            for path in () if {run_id, runner_id} & holding else _remains(folder):
                found.setdefault(path, []).append(runner_id)
    for path, users in found.items():
        busy = {pid for runner_id in users for pid in process.marked(mark(state.root, runner_id))}
        keep = f"processes use it: pid {', '.join(map(str, sorted(busy)[:5]))}" if busy else ""
        yield Thing("scratch", path, f"of {users[-1]}, whose runner has ended", keep, partial(_scratch_removed, path))


def _remains(folder: Path) -> list[str]:
    try:
        carrier = taken_by(folder)
    except StateUnreadable:
        carrier = None
    if carrier and not process.is_gone(carrier):
        return []
    left = scratch.remains(folder, carrier)
    return left if carrier else [path for path in left if _age(Path(path)) > _JUST_NOW]


def _scratch_removed(path: str) -> str:
    scratch.remove(path)
    return ""


def _trash(plans: Iterable[runs.Plan]) -> Iterator[Thing]:
    for directory in {Path(plan.directory) for plan in plans if plan.directory}:
        for path in directory.glob(".trash-*"):
            if _age(path) > _JUST_NOW:
                yield Thing("trash", str(path), "a removal was cut short", "", _tree_removal(path))


# -- what only ages


def _old_runs(state: StateDir, plans: dict[str, runs.Plan], kept: list[str], older: float) -> Iterator[Thing]:
    for entry in os.scandir(state.runs):
        path, plan = Path(entry.path), plans.get(entry.name)
        age = min((_age(one) for one in (path, *path.glob("*"))), default=0.0)
        if age <= max(older, _JUST_NOW):
            continue
        keep = ""
        if lookup.launcher_lives(state, entry.name):
            keep = "somebody follows it now"
        elif plan and any(Path(name).parent == Path(plan.directory) and _is_of(name, plan) for name in kept):
            keep = "it has workspaces that are kept"
        elif any(name.startswith(f"{entry.name}.") for name in lookup.runner_ids(state)):
            keep = "a runner of it lives"
        yield Thing("run", entry.name, f"{duration(age)} old", keep, _tree_removal(path, state.tmp))


def _is_of(path: str, plan: runs.Plan) -> bool:
    return Path(path).name.startswith(f"{plan.run_id}-")


def _old_files(state: StateDir, older: float) -> Iterator[Thing]:
    for kind, folder in (("events", state.events), ("quarantine", state.quarantine_folder)):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            age = _age(Path(entry.path))
            if age > max(older, _JUST_NOW):
                yield Thing(kind, entry.name, f"{duration(age)} old", "", _file_removal(Path(entry.path)))


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _file_removal(path: Path) -> Callable[[], str]:
    def remove() -> str:
        path.unlink(missing_ok=True)
        return ""

    return remove


def _tree_removal(path: Path, aside: Path | None = None) -> Callable[[], str]:
    """Delete a directory; out of the way first, in one step, when there is a place for that."""

    def remove() -> str:
        doomed = aside / f"gone.{path.name}.{os.urandom(3).hex()}" if aside else path
        if aside:
            os.rename(path, doomed)
        return "" if workspace.delete_tree(doomed) else f"{doomed} could not be deleted completely"

    return remove
