"""Programs as something to await: no shell, output within bounds, and nothing left of them when cancelled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from necrocode import aside, process
from necrocode.aio.threads import Threads, to_the_end
from necrocode.errors import TaskFailed
from necrocode.task import Task
from necrocode.work import Place, filled, run_command
from necrocode.workspace import Workspace


class Output(NamedTuple):
    """What a program gave. Of each stream at most 10 MB, the middle left out."""

    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    usage: Mapping[str, float] = {}


class CommandFailed(TaskFailed):
    """A program ended badly or was not there: its `exit_code`, the `kind` of trouble (work, timeout, not_found, ...)
    and what it had written."""

    def __init__(self, message: str, *, kind: str = "work", exit_code: int | None = None, stdout: str = "",
                 stderr: str = "", task_id: str = "") -> None:  # fmt: skip
        super().__init__(message, task_id=task_id)
        self.kind, self.exit_code, self.stdout, self.stderr = kind, exit_code, stdout, stderr


class Command:
    """A program to run: an argv, never given to a shell. `{prompt}`, `{task_id}`, `{title}` and `{workspace}` in it
    are filled in from `task`, when one is given. Awaiting its call gives its Output.

    Cancelling ends it with everything it started: SIGTERM, after `grace` seconds SIGKILL."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        task: Task | None = None,
        timeout: float | None = None,
        grace: float = 5.0,
        on_line: Callable[[str, bytes], None] | None = None,
    ) -> None:
        if isinstance(argv, str) or not argv or not all(isinstance(part, str) for part in argv):
            raise TypeError(f"a command is a list of texts, not {argv!r}")
        self.argv, self.cwd, self.env, self.task = tuple(argv), Path(cwd or Path.cwd()), dict(env or {}), task
        self.timeout, self.grace, self.on_line = timeout, grace, on_line

    async def __call__(self) -> Output:
        """Raises CommandFailed for every end but a good one."""
        stop, threads = process.Stop(), Threads()
        future = threads.start(lambda: self._run(stop), f"command-{os.path.basename(self.argv[0])}")
        try:
            output: Output = await to_the_end(future, stop.set)
        finally:
            stop.close()
        return output

    def _run(self, stop: process.Stop) -> Output:
        with aside.folder() as folder:
            task = self.task or Task("command")
            workspace = Workspace(self.cwd, "", "", None, "none", folder)
            place = Place(
                workspace, folder, task._replace(timeout=self.timeout), {**os.environ, **self.env}, stop,
                f"aio.{os.getpid()}.{folder.name}", grace=self.grace, on_line=self.on_line,
            )  # fmt: skip
            argv = filled(self.argv, place) if self.task else self.argv
            work = run_command(place, argv, timeout=self.timeout)
            stdout, stderr = (_text(folder / f"{stream}.log") for stream in ("stdout", "stderr"))
        if not work.ok:
            raise CommandFailed(
                work.error, kind=work.kind, exit_code=work.exit_code, stdout=stdout, stderr=stderr, task_id=task.id
            )
        return Output(work.exit_code, stdout, stderr, work.usage.get("seconds", 0.0), work.usage)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
