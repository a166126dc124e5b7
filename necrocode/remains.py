"""What killed runners leave of tasks that are done: the result was told, workspace and TMPDIR not yet removed."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from necrocode import git, journal, process, scratch, workspace
from necrocode.claim import Claim
from necrocode.errors import GitFailed, LeaseLost, NecrocodeError, Refused, StateUnreadable, WorkspaceKept
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.order import taken_by
from necrocode.runs import Plan, attempts_of_all
from necrocode.statedir import StateDir


def clear_done(plan: Plan, ledger: FileLedger, done: Collection[str]) -> None:
    """Remove the workspaces of those tasks of a run that are done, and of nobody who still works there.

    What cannot be removed stays, and is told as an event."""
    places = {plan.place(task): task.id for task in plan.tasks if task.id in done and plan.mode_of(task) != "none"}
    if not places or plan.keep_workspaces:
        return
    try:
        repository = git.open_repository(plan.repository)
        for left in workspace.list_leftovers(repository, ledger.state.root):
            task_id = places.get(str(left.workspace.path))
            if task_id is not None:
                _clear(plan, ledger, left.workspace, task_id)
        workspace.empty_trash(Path(plan.directory))
    except NecrocodeError as error:
        _tell(plan, ledger, "error.recorded", "", error=f"workspaces that are done with could not be found: {error}")


def ends_told(state: StateDir, run_id: str) -> frozenset[tuple[str, int]]:
    """Of which attempts of a run the end was told: task and number of each."""
    events = journal.read(state.events, run_id=run_id, kind="attempt.finished")
    return frozenset((event.task_id, event.facts.get("attempt", 0)) for event in events)


def clear_scratch(state: StateDir, run_id: str) -> None:
    """Remove the TMPDIRs of those who carried attempts of this run, and have ended."""
    for _, folder in chain(*attempts_of_all(state, run_id).values()):
        clear_after(folder)


def clear_after(folder: Path) -> None:
    """Remove the TMPDIR of who carried the attempt in this folder, if that has ended."""
    with suppress(StateUnreadable):
        carrier = taken_by(folder)
        for path in scratch.remains(folder, carrier) if carrier and process.is_gone(carrier) else ():
            scratch.remove(path)


def _clear(plan: Plan, ledger: FileLedger, place: workspace.Workspace, task_id: str) -> None:
    claims = (Claim.workspace(str(place.path)), git.branch_claim(place.repo, place.branch))
    try:
        lease = ledger.register(Request(f"{plan.run_id}.{task_id}.clear", claims, task_id, slot=False))
    except Refused:
        return
    path = str(place.path)
    try:
        workspace.retire(place, landed=True)
        _tell(plan, ledger, "workspace.removed", task_id, path=path)
    except (WorkspaceKept, GitFailed, OSError) as kept:
        _tell(plan, ledger, "workspace.kept", task_id, path=path, reason=str(kept))
    finally:
        try:
            ledger.release(lease)
        except LeaseLost as lost:
            _tell(plan, ledger, "error.recorded", task_id, error=str(lost))


def _tell(plan: Plan, ledger: FileLedger, kind: str, task_id: str, **facts: Any) -> None:
    journal.append(ledger.state.events, [journal.make(kind, task_id=task_id, run_id=plan.run_id, **facts)])
