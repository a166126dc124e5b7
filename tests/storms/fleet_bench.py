"""What the tests of runs stand on: a repository, a state directory, plans, launchers, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from byhand import sh

from necrocode import process, scratch
from necrocode.fleet import Fleet
from necrocode.ledger.files import FileLedger
from necrocode.order import read_result, taken_by
from necrocode.outcome import Outcome, Status
from necrocode.runs import Plan, attempts_of_all, new_run, run_folder
from necrocode.task import Task
from necrocode.testing import check, wait_for


class Bench:
    """A repository with a.txt and b.txt, runs on it, and `log`: a file outside every workspace that tasks write to."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.repository, self.log = tmp, tmp / "repo", tmp / "log"
        self.ledger = FileLedger(tmp / "state")
        self.state = self.ledger.state
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.log.touch()

    def with_repository(self) -> Bench:
        self.repository.mkdir()
        self.git("init", "-q", "-b", "main")
        for key, value in {"user.name": "Ada", "user.email": "ada@example.org", "gc.auto": "0"}.items():
            self.git("config", key, value)
        for name in ("a.txt", "b.txt"):
            (self.repository / name).write_text(f"{name}\n")
        self.git("add", "-A")
        self.git("commit", "-qm", "first")
        return self

    def git(self, *args: str) -> str:
        return sh("git", *args, cwd=self.repository)

    def plan(self, *tasks: Task, jobs: int = 2, **terms: Any) -> Plan:
        run_id = new_run(self.state)
        claims = {task.id: task.wanted("repo") for task in tasks}
        plan = Plan(run_id, tasks, claims, jobs, mode="none", directory=str(self.tmp / "work"), grace=2.0)
        if self.repository.exists():
            base = self.git("rev-parse", "HEAD")
            plan = plan._replace(mode="worktree", repository=str(self.repository), base=base)
        else:
            plan = plan._replace(repository=str(self.tmp))
        plan = plan._replace(**terms)
        plan.save(self.state)
        return plan

    def task(self, name: str, script: str = "true", **terms: Any) -> Task:
        """A shell command that first notes in the log that it began."""
        note = f'echo "{name} $NECROCODE_ATTEMPT" >> {self.log}; '
        return Task(name, command=("sh", "-c", note + script), **terms)

    @property
    def begun(self) -> list[tuple[str, int]]:
        """Which tasks began, with their attempts' numbers, in the order of beginning."""
        lines = self.log.read_text().splitlines()
        return [(name, int(number)) for name, _, number in (line.partition(" ") for line in lines)]

    def fleet(self, plan: Plan, **terms: Any) -> Fleet:
        return Fleet(plan, FileLedger(self.state), listener=lambda *told: self.told.append(told), **terms)

    def run(self, plan: Plan, **terms: Any) -> dict[str, Outcome]:
        outcomes = self.fleet(plan, **terms).run()
        self.assert_at_rest(plan)
        return outcomes

    def heard(self, what: str) -> list[str]:
        return [task_id for task_id, said, _ in self.told if said == what]

    def launcher(self, plan: Plan, **more: Any) -> subprocess.Popen[bytes]:
        """A launcher of its own process, by the real command line."""
        argv = [sys.executable, "-m", "necrocode", "--state-dir", str(self.state.root), "run", "--resume", plan.run_id]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.tmp}
        return subprocess.Popen([*argv, "--json"], **{**options, **more})

    def resume(self, plan: Plan) -> dict[str, Any]:
        """Resume by the real command line, to the end; what it told of each task."""
        with self.launcher(plan) as launcher:
            out, said = launcher.communicate(timeout=100)
        assert launcher.returncode in (0, 1), (launcher.returncode, out, said)
        return {task["task_id"]: task for task in json.loads(out)["tasks"]}

    def attempts(self, plan: Plan) -> dict[str, list[Outcome | None]]:
        """The results of all attempts at each task, in order."""
        every = attempts_of_all(self.state, plan.run_id)
        return {task_id: [read_result(folder) for _, folder in folders] for task_id, folders in every.items()}

    def runners(self, plan: Plan) -> dict[Path, int]:
        """The living runners that carry an attempt without a result: folder and pid."""
        folders = [folder for all_ in attempts_of_all(self.state, plan.run_id).values() for _, folder in all_]
        found = {}
        for folder in folders:
            carrier = taken_by(folder)
            if carrier and not process.is_gone(carrier) and not (folder / "result.json").exists():
                found[folder] = carrier.pid
        return found

    def assert_at_rest(self, plan: Plan) -> None:
        """Nothing of the run is left but its results, its branches, and the workspaces of what failed."""
        wait_for(lambda: not self._processes(plan), told=lambda: self._processes(plan))
        self.ledger.sweep()
        assert check(self.state.root)
        for folder in ("runners", "queue", "fenced", "live", "bells"):
            assert os.listdir(self.state.root / folder) == [], folder
        every = attempts_of_all(self.state, plan.run_id)
        left = [scratch.remains(folder, taken_by(folder)) for all_ in every.values() for _, folder in all_]
        assert not any(left), left
        if self.repository.exists():
            self._assert_git_at_rest(plan)

    def _processes(self, plan: Plan) -> list[str]:
        """Processes of agents (they bear the mark) and of runners (they have the state directory as argument)."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                argv = Path("/proc", pid, "cmdline").read_bytes()
                env = Path("/proc", pid, "environ").read_bytes()
            except OSError:
                continue
            if f"NECROCODE_LEASE={plan.run_id}.".encode() in env or (
                b"necrocode.runner" in argv and os.fsencode(self.state.root) in argv
            ):
                found.append(f"{pid} {argv!r}")
        return found

    def _assert_git_at_rest(self, plan: Plan) -> None:
        self.git("fsck", "--strict", "--no-dangling")
        results = self.attempts(plan)
        done = {task_id for task_id, all_ in results.items() if all_ and all_[-1] and all_[-1].ok}
        left = {name.partition("-")[2] for name in os.listdir(self.tmp / "work")} if results else set()
        assert not left & done, f"workspaces of what is done: {left & done}"
        listed = {Path(line[9:]) for line in self.git("worktree", "list", "--porcelain").splitlines()
                  if line.startswith("worktree ")}  # fmt: skip
        assert listed == {self.repository, *(self.tmp / "work" / f"{plan.run_id}-{name}" for name in left)}
        assert run_folder(self.state, plan.run_id).is_dir()


def statuses(outcomes: dict[str, Outcome]) -> dict[str, Status]:
    return {task_id: outcome.status for task_id, outcome in outcomes.items()}
