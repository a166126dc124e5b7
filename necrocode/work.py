"""How a task's work is done in its workspace: one command, an agent's command line, or a playbook of steps."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from necrocode import process, shells
from necrocode.errors import ConfigError
from necrocode.outcome import Status
from necrocode.playbook import Conditions, checked_step, substituted
from necrocode.task import Argv, Step, Task
from necrocode.workspace import Workspace

LINGER = 30.0
"""Seconds that an agent may live on after it told its result; some never end by themselves."""


class StopSign(Protocol):
    """What tells a running attempt to end: a threading.Event, or process.Stop, which wakes at once."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...


class Place(NamedTuple):
    """Where and under which terms work is done: the workspace, the attempt's folder for logs, the environment, the
    moment (on the monotonic clock) at which the attempt's time is over, and the descriptors that the agent's tree
    keeps open (its lifeline)."""

    workspace: Workspace
    folder: Path
    task: Task
    env: Mapping[str, str]
    stop: StopSign
    marker: str
    deadline: float | None = None
    pass_fds: tuple[int, ...] = ()
    grace: float = 10.0
    on_line: Callable[[str, bytes], object] | None = None
    alone: bool = False


class Work(NamedTuple):
    """What came of it. `status` is DONE, FAILED, TIMED_OUT or CANCELLED; `kind` names the phase or clock to blame."""

    status: Status = Status.DONE
    error: str = ""
    kind: str = ""
    exit_code: int | None = None
    usage: Mapping[str, float] = {}

    @property
    def ok(self) -> bool:
        return self.status is Status.DONE


Worker = Callable[[Place], Work]


def worker_for(task: Task, agent: Argv = (), result_mark: str = "") -> Worker:
    """What carries out this task: its command, its playbook, or the agent's argv template with the prompt filled in.

    An agent that goes on after a line with `result_mark` in it has LINGER seconds left, and has done its work.
    Raises ConfigError for a prompt without an agent: work that nobody does is never called done."""
    if task.command:
        return lambda place: run_command(place, task.command)
    if task.playbook:
        return lambda place: run_playbook(place, task.playbook)
    if agent:
        return lambda place: run_command(_told_by(place, result_mark), filled(agent, place))
    raise ConfigError(
        f"task {task.id} has a prompt, but no agent is configured",
        hint='name one: agent = "..." in the task file, or --agent "my-agent --yes {prompt}"',
    )


def _told_by(place: Place, result_mark: str) -> Place:
    mark = result_mark.encode()
    return place._replace(on_line=lambda stream, line: mark in line) if mark else place


_PLACEHOLDERS = re.compile(r"\{(prompt|workspace|branch|task_id|title)\}")


def checked_agent(template: Sequence[str], where: str = "") -> Argv:
    """An agent's argv, or ConfigError when a placeholder of it would be read as a program."""
    return shells.checked(template, _PLACEHOLDERS, where)


def filled(template: Sequence[str], place: Place) -> Argv:
    """An agent's argv: `{prompt}`, `{workspace}`, `{branch}`, `{task_id}` and `{title}` are replaced, in one pass
    and inside their own argument, so that no text of a prompt is expanded again or meets a shell. A text that
    would begin its argument with a dash gets a space before it, so that it cannot become an option.

    Raises ConfigError for a template in which a shell would read such a text as a program."""
    values = {
        "{prompt}": place.task.prompt,
        "{workspace}": str(place.workspace.path),
        "{branch}": place.workspace.branch,
        "{task_id}": place.task.id,
        "{title}": place.task.title or place.task.id,
    }
    return tuple(_replaced(argument, values) for argument in checked_agent(template))


def _replaced(argument: str, values: Mapping[str, str]) -> str:
    parts: list[str] = []
    at = 0
    while at < len(argument):
        key = next((key for key in values if argument.startswith(key, at)), None)
        parts.append(values[key] if key else argument[at])
        at += len(key) if key else 1
    text = "".join(parts)
    return f" {text}" if text.startswith("-") and not argument.startswith("-") else text


def run_command(
    place: Place, argv: Argv, *, log: str = "", timeout: float | None = None, silent: float | None = None
) -> Work:
    """One command in the workspace, its output in `<folder>/<log>stdout.log` and `stderr.log`."""
    left = _left(place.deadline, timeout)
    if left is not None and left <= 0:
        return Work(Status.TIMED_OUT, "no time was left for it", "timeout")
    if unfit := _unfit(argv, place.task):
        return Work(Status.FAILED, f"{argv[0]} cannot be given {unfit}", "not_executable", 126)
    limits = process.Limits(
        total=left, silent=silent or place.task.silent_timeout, grace=place.grace, after_result=LINGER
    )
    try:
        ended = process.run(
            argv, cwd=place.workspace.path, env=place.env, marker=place.marker, limits=limits, stop=place.stop,
            stdout=place.folder / f"{log}stdout.log", stderr=place.folder / f"{log}stderr.log",
            pass_fds=place.pass_fds, on_line=place.on_line, adopt=place.alone,
        )  # fmt: skip
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Work(Status.FAILED, f"{argv[0]} could not be started: {where}{error.strerror}", "start")
    return judged(argv, ended, limits.silent)


def _unfit(argv: Argv, task: Task) -> str:
    """What no program can be given, "" when there is nothing of it."""
    texts = {"arguments": argv, "an environment": [part for pair in task.env.items() for part in pair]}
    for what, parts in texts.items():
        if any("\0" in part for part in parts):
            return f"{what} with a NUL character"
        try:
            os.fsencode("".join(parts))
        except UnicodeEncodeError:
            return f"{what} with half a surrogate pair"
    return next((f"a variable named {name!r}" for name in task.env if not name or "=" in name), "")


def _left(deadline: float | None, timeout: float | None) -> float | None:
    left = [timeout, None if deadline is None else deadline - time.monotonic()]
    return min((seconds for seconds in left if seconds is not None), default=None)


def judged(argv: Argv, ended: process.Ended, silent: float | None = None) -> Work:
    """What the end of a process means for the work; `silent` is how many seconds without output it had."""
    usage = {"cpu_seconds": ended.cpu_seconds, "max_rss_mb": ended.max_rss_mb, "seconds": ended.seconds}
    name = os.path.basename(argv[0])
    if ended.why == "not_found":
        return Work(Status.FAILED, f"{argv[0]}: command not found{_words(argv, ended)}", "not_found", 127, usage)
    if ended.why == "not_executable":
        return Work(Status.FAILED, f"{argv[0]}: cannot be executed{_words(argv, ended)}", "not_executable", 126, usage)
    if ended.why == "stopped":
        return Work(
            Status.CANCELLED, f"{name} was stopped after {ended.seconds:.1f} s", "stopped", ended.exit_code, usage
        )
    if ended.why in ("timeout", "silent"):
        out = f"ran out of time after {ended.seconds:.1f} s"
        why = out if ended.why == "timeout" else f"gave no sign of progress for {silent or 0.0:g} s"
        return Work(Status.TIMED_OUT, f"{name} {why}", ended.why, ended.exit_code, usage)
    if ended.why == "lingered":
        return Work(Status.DONE, usage=usage)  # it had told its result; what hung afterwards was ended
    if ended.signal:
        return Work(Status.FAILED, f"{name} was ended by signal {ended.signal}", "work", 128 + ended.signal, usage)
    if ended.exit_code:
        return Work(Status.FAILED, f"{name} ended with {ended.exit_code}", "work", ended.exit_code, usage)
    return Work(Status.DONE, exit_code=0, usage=usage)


def _words(argv: Argv, ended: process.Ended) -> str:
    """The system's own words, without the name that was just told."""
    said = ended.error.removeprefix(f"{argv[0]}: ")
    return f" ({said})" if said else ""


def run_playbook(
    place: Place,
    steps: Sequence[Step],
    facts: Mapping[str, object] | None = None,
    *,
    names: Mapping[str, object] | None = None,
) -> Work:
    """The steps in order. One whose condition is false is passed over; one that fails is tried again as often as it
    says, and then ends the playbook unless it may fail. When the time of the whole is over, so is the playbook.

    Conditions know the environment, the task's `prompt`, `title`, `branch`, `task_id` and `workspace`, and `facts`.
    Each `${name}` in the command of a step that is carried out is one of them too, or, when `names` are given, one
    of those. Raises PlaybookExecutionError for text that cannot be understood, ConfigError for a step in which a shell
    would read one of them as a program."""
    variables = {**place.env, **_known(place), **(facts or {})}
    conditions = Conditions(variables)
    used: dict[str, float] = {}
    for step in steps:
        checked_step(step.command, f"step {step.name!r}")
    for number, step in enumerate(steps, 1):
        if step.condition is not None and not conditions.hold(step.condition):
            continue
        argv = tuple(substituted(part, variables if names is None else names) for part in step.command)
        work = _tried(place, step._replace(command=argv), number)
        used = _added(used, work.usage)
        over = place.deadline is not None and time.monotonic() >= place.deadline
        if not work.ok and (step.fail_fast or over or work.status is Status.CANCELLED):
            return work._replace(error=f"step {step.name!r}: {work.error}", usage=used)
    return Work(usage=used)


def _known(place: Place) -> dict[str, object]:
    task, workspace = place.task, place.workspace
    facts = {"prompt": task.prompt, "title": task.title, "task_id": task.id}
    return {**facts, "branch": workspace.branch, "workspace": str(workspace.path)}


def _added(used: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Both together: what is a most stays one, the rest adds up."""
    return {
        key: (max if key.startswith("max_") else float.__add__)(used.get(key, 0.0), more.get(key, 0.0))
        for key in {**used, **more}
    }


def _tried(place: Place, step: Step, number: int) -> Work:
    work = Work()
    for _ in range(step.retry_count + 1):
        work = run_command(place, step.command, log=f"step-{number}.", timeout=step.timeout_seconds)
        if work.ok or work.status is Status.CANCELLED:
            break
    return work


def verify(place: Place, commands: Sequence[Argv]) -> Work:
    """The commands that judge the work, one after another; the first that fails is the verdict."""
    for number, argv in enumerate(commands, 1):
        work = run_command(place, argv, log=f"verify-{number}.")
        if not work.ok:
            said = "" if work.status is Status.CANCELLED else "the work was not accepted: "
            return work._replace(error=f"{said}{work.error}", kind="verify" if work.kind == "work" else work.kind)
    return Work()
