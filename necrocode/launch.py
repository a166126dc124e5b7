"""From a task file and a few wishes to the plan of a run; everything that can be refused is refused here, before
anything is touched."""

from __future__ import annotations

import os
import shlex
import shutil
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from necrocode import git, workspace
from necrocode.claim import Claim
from necrocode.errors import ConfigError, NecrocodeError
from necrocode.playbook import checked_step
from necrocode.runs import Plan
from necrocode.task import Argv, Task, TaskFile
from necrocode.wanted import Place
from necrocode.work import checked_agent


class AgentMissing(NecrocodeError):
    """An agent that tasks name cannot be started; `exit_code` is 127 (not found) or 126 (not executable)."""

    def __init__(self, name: str, program: str, code: int, where: str = "") -> None:
        what = "is not installed" if code == 127 else "cannot be executed"
        told = f"agent {name!r}: {program} {what}"
        super().__init__(f"{where}: {told}" if where else told, hint="install it, or name another agent with --agent")
        self.name, self.program, self.exit_code, self.where = name, program, code, where


class Wishes(NamedTuple):
    """What was said on the command line, beyond the file; None and "" leave it to the file, then to the default."""

    jobs: int | None = None
    only: tuple[str, ...] = ()
    timeout: float | None = None
    agent: str = ""
    mode: workspace.Mode | None = None
    base: str = ""
    fail_fast: bool = False
    patience: float | None = None
    directory: str = ""
    keep_workspaces: bool = False
    retries: int | None = None
    grace: float = 10.0
    heartbeat_timeout: float = 300.0


class Draft(NamedTuple):
    """A plan without a run id yet, and what the user should know about it."""

    plan: Plan
    notes: tuple[str, ...] = ()


def draft(file: TaskFile, wishes: Wishes, where: Path) -> Draft:
    """The plan for a task file, to be run on the repository at `where`.

    Raises ConfigError for what cannot be run as it is written, AgentMissing for an agent that is not there."""
    tasks, notes = chosen(file.tasks, wishes.only)
    tasks = tuple(_with_wishes(task, wishes) for task in tasks)
    _check_steps(tasks, file)
    mode = wishes.mode or file.defaults.workspace or "worktree"
    agents = _agents(tasks, lambda task: "--agent" if wishes.agent else _place(file, task))
    jobs = wishes.jobs or file.defaults.jobs or os.cpu_count() or 1
    words = {key: getattr(wishes, key) for key in ("timeout", "retries", "agent", "mode", "only")}
    said = {key: word for key, word in words.items() if word not in (None, "", ())}
    plan = Plan(
        "", tasks, {}, jobs, mode, agents=agents, setup=file.defaults.setup, said=said,  # type: ignore[arg-type]
        result_marks=_result_marks(agents), fail_fast=wishes.fail_fast,
        patience=wishes.patience, source=os.path.abspath(file.name), keep_workspaces=wishes.keep_workspaces,
        heartbeat_timeout=wishes.heartbeat_timeout, grace=wishes.grace,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    if all(plan.mode_of(task) == "none" for task in tasks):
        return _in_place(plan, where, notes)
    return _in_repository(plan, wishes, where, notes)


def _in_place(plan: Plan, where: Path, notes: tuple[str, ...]) -> Draft:
    """Without workspaces, tasks work where those with one leave their work: at the root of the repository they are in;
    in none, where they were called. Git is only asked when they claim what may be a repository's."""
    root = git.top_above(where) or where
    if root != where:
        notes = (*notes, f"tasks work in {root}, the top of the repository")
    return Draft(plan._replace(claims=_claims(plan.tasks, Place(root)), repository=str(root)), notes)


def _in_repository(plan: Plan, wishes: Wishes, where: Path, notes: tuple[str, ...]) -> Draft:
    repository = git.open_repository(where)
    if not git.has_commit(repository.root):
        raise ConfigError(f"{repository.root} has no commit yet", hint="make one: git add -A && git commit -m start")
    name = wishes.base or git.current_branch(repository.root) or "HEAD"
    plan = plan._replace(
        repository=str(repository.root), base=git.rev_parse(name, cwd=repository.root), base_name=name,
        directory=wishes.directory or str(workspace.default_directory(repository)),
        claims=_claims(plan.tasks, Place(repository.root, repository)),
    )  # fmt: skip
    plan = plan._replace(agents={name: _reachable(argv, plan, where) for name, argv in plan.agents.items()})
    _check_branches(plan, repository)
    return Draft(plan, (*notes, *_state_of(repository, name)))


def _reachable(agent: Argv, plan: Plan, where: Path) -> Argv:
    """An agent that is named by a relative path is the workspace's own where the repository has it; otherwise the one
    that was seen from here, since a workspace has none."""
    program = os.path.normpath(agent[0])
    if "/" not in agent[0] or git.run("ls-tree", plan.base, "--", program, cwd=plan.repository, check=False).stdout:
        return agent
    return (str(where / program), *agent[1:])


def _state_of(repository: git.Repository, name: str) -> Iterable[str]:
    if changed := git.status(repository.root):
        changes = "1 uncommitted change" if len(changed) == 1 else f"{len(changed)} uncommitted changes"
        yield f"tasks do not see {changes} in {repository.root}: commit what they need"
    if name == "HEAD":
        yield "HEAD is detached: the tasks start from that commit"


def _check_branches(plan: Plan, repository: git.Repository) -> None:
    """Whether each task's branch can be there beside all others, and be checked out in a workspace."""
    mine = [task for task in plan.tasks if plan.mode_of(task) != "none"]
    out = {one.branch: one.path for one in git.work_trees(repository.common_dir) if not workspace.is_ours(one)}
    known = dict.fromkeys(git.branches(cwd=repository.common_dir), "which is there")
    known |= {task.branch: f"that of {task.id}" for task in mine if task.branch}
    folders = {str(folder): name for name in known for folder in PurePosixPath(name).parents}
    for task in mine:
        if task.branch and task.branch in out:
            said, there = f"branch {task.branch} is checked out in {out[task.branch]}", out[task.branch].is_dir()
            hint = "or `git switch` to another there" if there else "or `git worktree prune`, since that place is gone"
            raise ConfigError(said, where=f"task {task.id}", hint=f"name another one, {hint}")
        name = task.branch or f"{workspace.OURS}-/{task.id}"  # no run is called that
        above = (str(folder) for folder in PurePosixPath(name).parents)
        if other := folders.get(name) or next((one for one in above if one in known), None):
            called = task.branch or f"{workspace.OURS}RUN/{task.id}"
            said = f"there cannot be a branch {called} beside {other}, {known[other]}"
            hint = "git keeps one as a folder of the other: choose a name that does not begin with the other's"
            raise ConfigError(said, where=f"task {task.id}", hint=hint)


def _claims(tasks: Iterable[Task], place: Place) -> dict[str, tuple[Claim, ...]]:
    return {task.id: _claims_of(task, place) for task in tasks}


def _claims_of(task: Task, place: Place) -> tuple[Claim, ...]:
    try:
        return place.wanted(task.claims, task.files, [task.branch] if task.branch else [])
    except ConfigError as error:
        raise ConfigError(str(error), where=f"task {task.id}", hint=error.hint) from error


def chosen(
    tasks: tuple[Task, ...], only: Collection[str], done: Collection[str] = ()
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """The tasks that were asked for, and those in `done`; what they come after outside of these counts as done, and is
    told."""
    known = {task.id for task in tasks}
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(
            f"--only names {', '.join(unknown)}, which is not among the tasks",
            hint=f"its tasks: {', '.join(sorted(known))}",
        )
    if not only:
        return tasks, ()
    there = {*only, *done}
    kept = [task for task in tasks if task.id in there]
    left_out = sorted({other for task in kept if task.id not in done for other in task.after if other not in there})
    narrow = tuple(task._replace(after=tuple(other for other in task.after if other in there)) for task in kept)
    return narrow, (f"taken as done, because they are not among --only: {', '.join(left_out)}",) if left_out else ()


SAID_ANEW = ("jobs", "timeout", "patience", "fail_fast", "grace", "keep_workspaces")
"""What may be said when a run is taken up, for the attempts that begin then; all else stands in its plan."""


def said_anew(plan: Plan, said: Mapping[str, Any]) -> Plan:
    """The plan of an earlier run with what is said of SAID_ANEW now; None is not said."""
    now = {key: said[key] for key in SAID_ANEW if said.get(key) is not None}
    if (timeout := now.pop("timeout", None)) is not None:
        now["tasks"] = tuple(task._replace(timeout=timeout) for task in plan.tasks)
    return plan._replace(**now)


def differences(plan: Plan, file: TaskFile) -> list[str]:
    """In what the task file is no longer what the plan was made of: tasks, each with what differs."""
    wishes = Wishes(**{key: plan.said[key] for key in ("timeout", "retries", "agent", "mode") if key in plan.said})
    only = plan.said.get("only")
    now = {task.id: _with_wishes(task, wishes) for task in file.tasks if not only or task.id in only}
    ids = {task.id for task in plan.tasks}
    told = [f"{task_id} (not in the run)" for task_id in now if task_id not in ids]
    for task in plan.tasks:
        if task.id not in now:
            told.append(f"{task.id} (not in the file)")
        elif other := _other_fields(task, now[task.id], ids):
            told.append(f"{task.id} ({', '.join(other)})")
    return told


def _other_fields(task: Task, now: Task, ids: Collection[str]) -> list[str]:
    now = now._replace(after=tuple(other for other in now.after if other in ids))  # as --only had left them out
    return [key for key, was in task._asdict().items() if was != getattr(now, key)]


def _with_wishes(task: Task, wishes: Wishes) -> Task:
    return task._replace(
        timeout=task.timeout if wishes.timeout is None else wishes.timeout,
        retries=task.retries if wishes.retries is None else wishes.retries,
        agent=wishes.agent or task.agent if task.prompt else task.agent,
        workspace=wishes.mode or task.workspace,
    )


def presets() -> Mapping[str, Argv]:
    """The agents that necrocode knows by name."""
    return {name: tuple(agent["argv"]) for name, agent in _presets().items()}


def _presets() -> dict[str, Any]:
    return tomllib.loads(resources.files("necrocode").joinpath("presets.toml").read_text())


def _result_marks(agents: Iterable[str]) -> dict[str, str]:
    """For the agents that tell their result in a line of output: a text which that line has."""
    known = _presets()
    return {name: known[name]["result"] for name in agents if "result" in known.get(name, {})}


def _place(file: TaskFile, task: Task) -> str:
    """Where a task file names the agent of a task, as it is said of all its mistakes."""
    line = file.agents.get(task.id)
    return f"{file.name}:{line}: task {task.id!r}" if line else f"{file.name}: task {task.id!r}"


def _check_steps(tasks: Iterable[Task], file: TaskFile) -> None:
    for task in tasks:
        for step in task.playbook:
            checked_step(step.command, f"{_place(file, task)}, step {step.name!r}")


def _agents(tasks: Iterable[Task], where: Callable[[Task], str]) -> dict[str, Argv]:
    known = presets()
    agents: dict[str, Argv] = {}
    for task in tasks:
        if task.prompt and task.agent not in agents:
            agents[task.agent] = _agent(task.agent, known, where(task))
    return agents


def _agent(name: str, known: Mapping[str, Argv], where: str) -> Argv:
    if not name:
        hint = f"give --agent: {', '.join(known)}, or a command line with {{prompt}}"
        raise ConfigError("it has a prompt, but no agent is named", where=where, hint=hint)
    try:
        argv = known.get(name) or checked_agent(shlex.split(name), where)
    except ValueError as error:
        said = f"agent {name!r} is no command line: {str(error).lower()}"
        raise ConfigError(said, where=where, hint="close its quotes") from None
    if name not in known and not any("{prompt}" in argument for argument in argv):
        raise ConfigError(
            f"agent {name!r} is neither known nor a command line with {{prompt}}",
            where=where,
            hint=f"known agents: {', '.join(known)}",
        )
    if shutil.which(argv[0]) is None:
        raise AgentMissing(name, argv[0], 126 if os.path.exists(argv[0]) else 127, where)
    return argv
