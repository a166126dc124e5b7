"""kill -9 of runners, agents and launchers at any moment of a run, and going on: every task is done exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_call import kill
from fleet_bench import Bench

from necrocode import journal, process
from necrocode.order import read_result, taken_by
from necrocode.outcome import Status
from necrocode.process.who import stat
from necrocode.runs import Plan, attempt_folder, attempts_of_all
from necrocode.statedir import mark
from necrocode.task import Task
from necrocode.testing import wait_for

TASKS = 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def home(bench: Bench) -> Bench:
    return bench.with_repository()


def assert_done_once(bench: Bench, plan: Plan) -> None:
    """Every task has one attempt that is done, it is the last one, and each attempt began at most once."""
    results = bench.attempts(plan)
    assert set(results) == {task.id for task in plan.tasks}
    for task_id, all_ in results.items():
        ended = [result.status for result in all_ if result]
        assert len(ended) == len(all_) and ended[-1] is Status.DONE, (task_id, all_)
        assert ended.count(Status.DONE) == 1
    assert all(count == 1 for count in Counter(bench.begun).values()), "an attempt began twice"
    began = dict(bench.begun)  # the last attempt of each that began
    assert all(began[task_id] == len(all_) for task_id, all_ in results.items())


def assert_work_on_branches(bench: Bench, plan: Plan) -> None:
    for task in plan.tasks:
        branch = plan.branch(task)
        assert bench.git("show", f"{branch}:{task.id}.txt") == task.id
        assert len(bench.git("log", "--format=%h", f"{plan.base}..{branch}").splitlines()) == 1


class Killer:
    """Kills, with a seed; never the same task's runner so often that the task would count as poison."""

    def __init__(self, bench: Bench, plan: Plan, seed: int) -> None:
        self.bench, self.plan, self.random = bench, plan, random.Random(seed)
        self.killed: Counter[str] = Counter()

    def runner(self) -> bool:
        victims = [(folder, pid) for folder, pid in self.bench.runners(self.plan).items() if self._lost(folder) < 2]
        return self._kill("runner", [pid for _, pid in victims])

    def agent(self) -> bool:
        root = self.bench.ledger.state.root
        marks = [mark(root, f"{self.plan.run_id}.{folder.name}") for folder in self.bench.runners(self.plan)]
        return self._kill("agent", [pid for one in marks for pid in process.marked(one)])

    def _lost(self, folder: Path) -> int:
        task_id = folder.name.rpartition(".")[0]
        results = self.bench.attempts(self.plan).get(task_id, [])
        return sum(result is not None and result.status is Status.LOST for result in results)

    def _kill(self, what: str, pids: list[int]) -> bool:
        if not pids:
            return False
        try:
            os.kill(self.random.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed[what] += 1
        return True


def storm(bench: Bench, plan: Plan, killer: Killer, kinds: list[str], rounds: int) -> None:
    """A launcher, and somebody who kills; whenever the launcher is gone, another one takes the run up again."""
    deadline, launcher = time.monotonic() + 90, bench.launcher(plan, stdout=subprocess.DEVNULL)
    try:
        while rounds and time.monotonic() < deadline:
            time.sleep(killer.random.uniform(0.02, 0.3))
            if launcher.poll() is not None:
                break
            kind, before = killer.random.choice(kinds), killer.killed.total()
            if "runner" in kind:
                killer.runner()
            if "agent" in kind:
                killer.agent()
            if "launcher" in kind:
                launcher.kill()
                launcher.communicate()
                killer.killed["launcher"] += 1
                launcher = bench.launcher(plan, stdout=subprocess.DEVNULL)
            rounds -= killer.killed.total() > before
        _, said = launcher.communicate(timeout=max(1.0, deadline - time.monotonic()))
        assert launcher.returncode in (0, 1), said
    finally:
        if launcher.poll() is None:
            launcher.kill()
        launcher.communicate()


def hard_worker(bench: Bench, name: str, **terms: Any) -> Task:
    return bench.task(name, f"sleep 0.1; echo {name} > {name}.txt", retries=9, **terms)


@pytest.mark.parametrize(
    ("kinds", "seed"),
    [
        (["runner", "agent"], 1),
        (["runner", "agent", "launcher", "launcher and runner"], 2),
    ],
)
def test_whatever_is_killed_every_task_is_done_once(home: Bench, kinds: list[str], seed: int) -> None:
    names = [f"t{number}" for number in range(TASKS)]
    tasks = [hard_worker(home, name, files=(f"{name[:2]}.txt",)) for name in names]
    plan = home.plan(*tasks, jobs=3)
    killer = Killer(home, plan, seed)
    storm(home, plan, killer, kinds, rounds=14)
    home.resume(plan)
    assert sum(killer.killed.values()) >= 5, killer.killed
    home.assert_at_rest(plan)
    assert_done_once(home, plan)
    for task in plan.tasks:
        branch = plan.branch(task)
        assert home.git("show", f"{branch}:{task.id}.txt") == task.id
        assert home.git("log", "-1", "--format=%(trailers:key=Necrocode-Task,valueonly)", branch).strip() == task.id


def test_living_attempts_are_adopted_and_finished_not_repeated(home: Bench) -> None:
    go = home.tmp / "go"
    waits = f"while [ ! -e {go} ]; do sleep 0.02; done; "
    plan = home.plan(*(home.task(f"t{n}", f"{waits} echo t{n} > t{n}.txt") for n in range(4)), jobs=2)
    with home.launcher(plan) as first:
        wait_for(lambda: len(home.begun) == 2, within=30.0)
        first.kill()
    runners = home.runners(plan)
    assert len(runners) == 2
    with home.launcher(plan) as second:
        wait_for(lambda: "adopted" in _seen(home, plan), within=30.0)
        go.touch()
        _, said = second.communicate(timeout=60)
        assert second.returncode == 0, said
    assert sorted(home.begun) == [(f"t{n}", 1) for n in range(4)]
    assert {taken_by(folder).pid for folder in runners} == set(runners.values())  # type: ignore[union-attr]
    home.assert_at_rest(plan)
    assert_work_on_branches(home, plan)


DAMAGES = ["", "[]", '{"pid": 1}', '{"pid": "x", "start_ticks": 1}', "{"]


def _damaged(folder: Path, text: str = "") -> None:
    (folder / "runner.json").unlink()  # it may be that of other attempts, too
    (folder / "runner.json").write_text(text)


def _adoptions(bench: Bench, plan: Plan) -> int:
    return len(list(journal.read(bench.state.events, None, kind="run.resumed", run_id=plan.run_id)))


def _left_alone(bench: Bench, plan: Plan) -> Path:
    """A task is under way whose launcher is dead, and of whose runner nobody can read who it is; its folder."""
    with bench.launcher(plan) as launcher:
        wait_for(lambda: bench.begun, within=30.0)
        launcher.kill()
    (folder,) = bench.runners(plan)
    _damaged(folder)
    return folder


@pytest.mark.parametrize("text", DAMAGES)
def test_who_cannot_be_read_and_is_dead_is_lost(bench: Bench, text: str) -> None:
    plan = bench.plan(bench.task("t0", "test $NECROCODE_ATTEMPT = 2 || exec sleep 100"), bench.task("t1"), jobs=1)
    with bench.launcher(plan) as launcher:
        wait_for(lambda: bench.begun, within=30.0)
        launcher.kill()
    ((folder, pid),) = bench.runners(plan).items()
    _damaged(folder, text)
    os.kill(pid, signal.SIGKILL)
    told = bench.resume(plan)
    assert [(one["status"], one["attempt"]) for _, one in sorted(told.items())] == [("done", 2), ("done", 1)]
    assert [one and one.status for one in bench.attempts(plan)["t0"]] == [Status.LOST, Status.DONE]
    (aside,) = bench.state.quarantine_folder.iterdir()
    assert aside.name.startswith("runner.json.") and aside.read_text() == text
    (event,) = journal.read(bench.state.events, None, kind="record.quarantined", run_id=plan.run_id)
    assert (event.facts["file"], event.facts["moved_to"]) == (str(folder / "runner.json"), str(aside))
    bench.assert_at_rest(plan)


def test_who_cannot_be_read_and_lives_is_waited_for_also_by_the_next_launcher(bench: Bench) -> None:
    go = bench.tmp / "go"
    plan = bench.plan(bench.task("t0", f"while [ ! -e {go} ]; do sleep 0.02; done"), jobs=1)
    folder = _left_alone(bench, plan)
    with bench.launcher(plan) as second:
        wait_for(lambda: _adoptions(bench, plan) == 1 and not (folder / "runner.json").exists(), within=30.0)
        second.kill()
    with bench.launcher(plan) as third:
        wait_for(lambda: _adoptions(bench, plan) == 2, within=30.0)
        go.touch()
        out, said = third.communicate(timeout=60)
        assert third.returncode == 0, (out, said)
    assert bench.begun == [("t0", 1)]
    bench.assert_at_rest(plan)


def test_who_cannot_be_read_is_stopped_with_its_run(bench: Bench) -> None:
    plan = bench.plan(bench.task("t0", "exec sleep 100"), jobs=1)
    _left_alone(bench, plan)
    with bench.launcher(plan) as second:
        wait_for(lambda: _adoptions(bench, plan) == 1, within=30.0)
        second.send_signal(signal.SIGTERM)
        out, said = second.communicate(timeout=60)
        assert second.returncode == 143, (out, said)
    assert [one and one.status for one in bench.attempts(plan)["t0"]] == [Status.CANCELLED]
    bench.assert_at_rest(plan)


def _seen(bench: Bench, plan: Plan) -> str:
    resumed = journal.read(bench.state.events, None, kind="run.resumed", run_id=plan.run_id)
    return " ".join("adopted" for event in resumed if event.facts["adopted"])


def test_a_runner_survives_its_launcher_and_finishes_alone(home: Bench) -> None:
    go = home.tmp / "go"
    plan = home.plan(home.task("t0", f"while [ ! -e {go} ]; do sleep 0.02; done; echo t0 > t0.txt"), jobs=1)
    with home.launcher(plan) as launcher:
        wait_for(lambda: home.begun, within=30.0)
        launcher.kill()
    go.touch()
    folder = attempt_folder(home.state, plan.run_id, "t0", 1)
    wait_for(lambda: read_result(folder), within=30.0)
    home.assert_at_rest(plan)
    assert_work_on_branches(home, plan)
    assert home.resume(plan)["t0"]["attempt"] == 1


def test_an_orphaned_agent_is_ended_before_its_task_is_done_again(bench: Bench) -> None:
    """The runner and the launcher die; the agent goes on, and holds the lease as long as it does."""
    script = f"test $NECROCODE_ATTEMPT = 2 || {{ echo $$ > {bench.tmp}/pid; sleep 100; echo late > {bench.tmp}/late; }}"
    plan = bench.plan(bench.task("t0", script), jobs=1)
    with bench.launcher(plan) as launcher:
        pid_file = bench.tmp / "pid"
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), within=30.0)
        launcher.kill()
    for pid in bench.runners(plan).values():
        os.kill(pid, signal.SIGKILL)
    agent = int(pid_file.read_text())
    assert os.path.exists(f"/proc/{agent}") and os.listdir(bench.state.runners), "the agent keeps its lease"
    assert bench.resume(plan)["t0"]["attempt"] == 2
    seen = stat(agent)
    assert (seen is None or seen.ended) and not (bench.tmp / "late").exists()
    bench.assert_at_rest(plan)


def test_of_two_who_resume_at_once_one_is_refused_and_told_who_does(bench: Bench) -> None:
    go = bench.tmp / "go"
    plan = bench.plan(*(bench.task(f"t{n}", f"while [ ! -e {go} ]; do sleep 0.02; done") for n in range(3)))
    with bench.launcher(plan) as one, bench.launcher(plan) as other:
        wait_for(lambda: one.poll() is not None or other.poll() is not None, within=60.0)
        refused, running = (one, other) if one.poll() is not None else (other, one)
        _, said = refused.communicate()
        assert refused.returncode == 75 and f"pid {running.pid}".encode() in said, said
        go.touch()
        running.communicate(timeout=60)
        assert running.returncode == 0
    assert sorted(bench.begun) == [(f"t{n}", 1) for n in range(3)]
    bench.assert_at_rest(plan)


@pytest.mark.parametrize("moment", ["task.json", "runner.json", "begun", "result.json"])
def test_killed_together_at_a_moment(home: Bench, moment: str) -> None:
    """Launcher and all runners at once, as soon as a certain file is there."""
    plan = home.plan(*(home.task(f"t{n}", f"echo t{n} > t{n}.txt") for n in range(3)), jobs=2)

    def is_there() -> bool:
        if moment == "begun":
            return bool(home.begun)
        folders = [folder for every in attempts_of_all(home.state, plan.run_id).values() for _, folder in every]
        return any((folder / moment).exists() for folder in folders)

    with home.launcher(plan) as launcher:
        _until(is_there)
        launcher.kill()
        for pid in home.runners(plan).values():
            kill(pid)  # which may have ended by itself since
    home.resume(plan)
    home.assert_at_rest(plan)
    assert_done_once(home, plan)
    assert_work_on_branches(home, plan)


def _until(fact: Callable[[], bool]) -> None:
    """Without any sleep: the moment counts."""
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline
