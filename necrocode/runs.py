"""Runs on the disk: the plan of each, runs/<run>/plan.json, written before anything starts, and its attempts.

Whoever has the plan can go on with the run. What became of it lies beside it, one folder for each attempt.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import git, workspace
from necrocode.claim import Claim, conflict
from necrocode.errors import ConfigError, StateUnreadable, StateUnusable
from necrocode.order import Order, read_result
from necrocode.outcome import FINAL_ERRORS, Outcome, Status
from necrocode.retry import POISON_LIMIT
from necrocode.statedir import StateDir, read_json, refused, to_json
from necrocode.task import Argv, Task

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


class Plan(NamedTuple):
    """One run as it was meant. `claims` are those of each task by its id, resolved against the disk; `agents` the
    argv templates by name; `repository` is "" when no task needs one; `base` is a commit, `base_name` what it was
    called; `directory` is where workspaces are made; `said` is what the command line said of the tasks."""

    run_id: str
    tasks: tuple[Task, ...]
    claims: Mapping[str, tuple[Claim, ...]]
    jobs: int
    mode: workspace.Mode = "worktree"
    repository: str = ""
    base: str = ""
    base_name: str = ""
    directory: str = ""
    agents: Mapping[str, Argv] = {}
    result_marks: Mapping[str, str] = {}
    setup: tuple[Argv, ...] = ()
    fail_fast: bool = False
    patience: float | None = None
    heartbeat_timeout: float = 300.0
    grace: float = 10.0
    keep_workspaces: bool = False
    source: str = ""
    created: str = ""
    said: Mapping[str, Any] = {}

    def task(self, task_id: str) -> Task:
        """Raises ConfigError for an id that is not of this run."""
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise ConfigError(
            f"run {self.run_id} has no task {task_id!r}", hint=f"its tasks: {', '.join(t.id for t in self.tasks)}"
        )

    @property
    def followed(self) -> dict[str, Any]:
        """What its launcher lets everybody know: this may be less than the whole run, with other places."""
        return {"jobs": self.jobs, "tasks": [task.id for task in self.tasks]}

    def branch(self, task: Task) -> str:
        return task.branch or f"{self.branches}{task.id}"

    @property
    def branches(self) -> str:
        """What the names of its tasks' branches begin with, unless a task says otherwise."""
        return f"{workspace.OURS}{self.run_id}/"

    def mode_of(self, task: Task) -> workspace.Mode:
        return task.workspace or self.mode  # type: ignore[return-value]

    def place(self, task: Task) -> str:
        """The directory in which it works."""
        if self.mode_of(task) == "none":
            return self.repository or os.getcwd()
        return os.path.join(os.path.realpath(self.directory), f"{self.run_id}-{task.id}")

    def order(self, state: StateDir, task: Task, number: int, done: Mapping[str, Outcome]) -> Order:
        """What the runner of one attempt needs. `done` has the outcomes so far, on whose branches it
        may have to build. Raises LandingConflict when those do not go together."""
        mode, folder = self.mode_of(task), attempt_folder(state, self.run_id, task.id, number)
        isolated = mode != "none"
        order = Order(
            self.run_id, task, number, str(folder), self.place(task), mode=mode, claims=self.claims[task.id],
            agent=self.agents.get(task.agent, ()), result_mark=self.result_marks.get(task.agent, ""),
            setup=self.setup, patience=self.patience, grace=self.grace,
            heartbeat_timeout=self.heartbeat_timeout, heartbeat_interval=min(5.0, self.heartbeat_timeout / 4),
            keep_workspace=self.keep_workspaces,
        )  # fmt: skip
        if not isolated:
            return order
        base, join = self._base(task, done), self._base(task, done, line=False)
        order = order._replace(base=base or self.base, join=join)
        return order._replace(repository=self.repository, branch=self.branch(task))

    def _base(self, task: Task, done: Mapping[str, Outcome], *, line: bool = True) -> str:
        """The branches of those it comes after, and, with `line`, of those that had its files before it in this run,
        merged: two tasks that want the same file are put in line, and the second one builds on what the first one did.
        "" when it builds on nobody's work."""
        tips = list(dict.fromkeys(self._tips(task, done, set(), line)))
        if not tips:
            return ""
        return tips[0] if len(tips) == 1 else git.merge(tips, cwd=self.repository, message=f"Base of {task.id}")

    def _tips(self, task: Task, done: Mapping[str, Outcome], seen: set[str], line: bool) -> Iterator[str]:
        """Where the work of those before it is. One that left no commit passes on what it was itself built on."""
        wanted = [claim for claim in self.claims[task.id] if line and claim.family == "file"]
        for other in self.tasks:
            outcome = done.get(other.id)
            if outcome is None or not outcome.ok or other.id == task.id or other.id in seen:
                continue
            if other.id in task.after or self._meets(wanted, other.id):
                seen.add(other.id)
                if outcome.commits:
                    yield f"refs/heads/{outcome.branch}"
                elif outcome.base and outcome.base != self.base:
                    yield outcome.base
                elif not outcome.branch:
                    yield from self._tips(other, done, seen, line)

    def _meets(self, wanted: Sequence[Claim], other: str) -> bool:
        return any(conflict(claim, theirs) for claim in wanted for theirs in self.claims[other])

    def save(self, state: StateDir) -> None:
        """On the disk before this returns. Raises StateUnusable."""
        state.write(run_folder(state, self.run_id) / "plan.json", to_json(self._to_dict()), durable=True)

    def _to_dict(self) -> dict[str, Any]:
        claims = {task_id: [list(claim) for claim in claims] for task_id, claims in self.claims.items()}
        return {"schema": 1, **self._asdict(), "tasks": [task.to_dict() for task in self.tasks], "claims": claims}

    @classmethod
    def load(cls, state: StateDir, run_id: str) -> Plan:
        """Raises ConfigError for a run that is not there, StateUnreadable for a plan that cannot be read."""
        path = run_folder(state, run_id) / "plan.json"
        try:
            data = read_json(path)
            return cls._from_dict(data)
        except FileNotFoundError:
            known = ", ".join(runs(state)[:8])
            raise ConfigError(
                f"there is no run {run_id!r}", hint=f"known runs, newest first: {known or 'none'}"
            ) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateUnreadable(str(path), f"is no plan ({error!r})") from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Plan:
        known = {key: value for key, value in data.items() if key in cls._fields}
        known["tasks"] = tuple(Task.from_dict(task) for task in data["tasks"])
        known["claims"] = {
            task_id: tuple(Claim(*claim) for claim in claims) for task_id, claims in data["claims"].items()
        }
        known["agents"] = {name: tuple(argv) for name, argv in data.get("agents", {}).items()}
        known["setup"] = tuple(map(tuple, data.get("setup", ())))
        return cls(**known)


def new_run(state: StateDir) -> str:
    """A fresh run id, six characters, with its folder made. Raises StateUnusable."""
    while True:
        run_id = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(6))
        try:
            run_folder(state, run_id).mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise refused(error, state.runs) from error
        return run_id


def begun(state: StateDir, plan: Plan) -> Plan:
    """The plan as that of a new run, on the disk. Raises StateUnusable, and nothing is left of the run then."""
    plan = plan._replace(run_id=new_run(state))
    try:
        plan.save(state)
    except StateUnusable:
        with suppress(OSError):
            run_folder(state, plan.run_id).rmdir()
        raise
    return plan


def runs(state: StateDir) -> list[str]:
    """The ids of all runs, newest first."""
    found = [
        (entry.stat().st_mtime, entry.name)
        for entry in os.scandir(state.runs)
        if (Path(entry.path) / "plan.json").exists()
    ]
    return [name for _, name in sorted(found, reverse=True)]


def run_folder(state: StateDir, run_id: str) -> Path:
    return state.runs / run_id


def attempt_folder(state: StateDir, run_id: str, task_id: str, number: int) -> Path:
    return run_folder(state, run_id) / f"{task_id}.{number}"


def attempts(state: StateDir, run_id: str, task_id: str) -> Iterator[tuple[int, Path]]:
    """The attempts at a task so far: their numbers and folders, first to last."""
    yield from attempts_of_all(state, run_id).get(task_id, ())


def attempts_of_all(state: StateDir, run_id: str) -> dict[str, list[tuple[int, Path]]]:
    """The same for every task of a run of which there are any."""
    folder = run_folder(state, run_id)
    found: dict[str, list[tuple[int, Path]]] = {}
    for name in os.listdir(folder):
        task_id, _, number = name.rpartition(".")
        if task_id and number.isdigit():
            found.setdefault(task_id, []).append((int(number), folder / name))
    return {task_id: sorted(folders) for task_id, folders in found.items()}


class Standing(NamedTuple):
    """Where a run stands: the tasks that are done, and those that are not and are only tried again when asked for."""

    done: frozenset[str]
    failed: frozenset[str]


def standing(state: StateDir, plan: Plan) -> Standing:
    """As the attempts so far have it. What is done is never repeated; what cannot be read came to nothing."""
    known = attempts_of_all(state, plan.run_id)
    came = {task.id: [_result(folder) for _, folder in known.get(task.id, ())] for task in plan.tasks}
    done = {task_id for task_id, outcomes in came.items() if any(one and one.ok for one in outcomes)}
    left = [task for task in plan.tasks if task.id not in done]
    failed = [one.id for one in left if _is_over(came[one.id][asked_anew(came[one.id], one.retries) :], one.retries)]
    return Standing(frozenset(done), frozenset(_with_what_follows(failed, left)))


def _with_what_follows(failed: Iterable[str], tasks: Iterable[Task]) -> set[str]:
    """These, and all that come after one of them."""
    after: dict[str, list[str]] = {}
    for task in tasks:
        for other in task.after:
            after.setdefault(other, []).append(task.id)
    found, new = set[str](), [*failed]
    while new:
        if (task_id := new.pop()) not in found:
            found.add(task_id)
            new += after.get(task_id, ())
    return found


def _result(folder: Path) -> Outcome | None:
    with suppress(StateUnreadable):
        return read_result(folder)
    return None


def asked_anew(came: Sequence[Outcome | None], retries: int) -> int:
    """How many attempts, the first ones, count no more: the task had failed for good, and was asked for once more."""
    begin = 0
    for number in range(1, len(came)):
        if _is_over(came[begin:number], retries):
            begin = number
    return begin


def _is_over(came: Sequence[Outcome | None], retries: int) -> bool:
    outcomes = [one for one in came if one]
    lost = sum(one.error_kind == "lost" for one in outcomes)  # also the last one, which is told as a failure
    ended = [one for one in outcomes if one.status in (Status.FAILED, Status.TIMED_OUT) and one.error_kind != "lost"]
    return len(ended) > retries or lost >= POISON_LIMIT or any(one.error_kind in FINAL_ERRORS for one in ended)
