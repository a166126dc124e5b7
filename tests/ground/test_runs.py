"""Plans on the disk, the folders of attempts, and what a task is built on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from byhand import sh

from necrocode import git
from necrocode.claim import Claim
from necrocode.errors import ConfigError, LandingConflict, StateUnreadable
from necrocode.outcome import Outcome, Status
from necrocode.runs import Plan, attempt_folder, attempts, attempts_of_all, new_run, run_folder, runs
from necrocode.statedir import StateDir
from necrocode.task import Step, Task


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def plan_of(*tasks: Task, repository: str = "", base: str = "", **terms: object) -> Plan:
    claims = {task.id: task.wanted("repo") for task in tasks}
    plan = Plan("run", tasks, claims, 2, repository=repository, base=base, directory="/work/places")
    return plan._replace(**terms)  # type: ignore[arg-type]


def test_a_plan_survives_the_disk(state: StateDir) -> None:
    tasks = (
        Task("a", prompt="do ünï", agent="x", files=("src/**",), after=("b",), env={"A": "1"}, verify=(("t", "1"),)),
        Task("b", playbook=(Step("s", ("true",), condition="a"),), claims=("shared:gpu:0",), timeout=1.5),
    )
    run_id = new_run(state)
    plan = plan_of(*tasks, run_id=run_id, agents={"x": ("x", "{prompt}")}, setup=(("make",),), patience=2.0)
    plan.save(state)
    assert Plan.load(state, run_id) == plan
    assert plan.task("b") == tasks[1]
    with pytest.raises(ConfigError, match="no task 'c'"):
        plan.task("c")


def test_a_plan_of_a_later_version_is_read_as_far_as_it_is_known(state: StateDir) -> None:
    run_id = new_run(state)
    (plan := plan_of(Task("a", command=("true",)), run_id=run_id)).save(state)
    path = run_folder(state, run_id) / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": {"x": 1}}))
    assert Plan.load(state, run_id) == plan


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run_id": "x"}', '{"tasks": 3, "claims": {}}', "null"])
def test_a_plan_that_cannot_be_read_says_which(state: StateDir, text: str) -> None:
    run_id = new_run(state)
    (run_folder(state, run_id) / "plan.json").write_text(text)
    with pytest.raises(StateUnreadable, match=f"{run_id}/plan.json"):
        Plan.load(state, run_id)


def test_a_run_that_is_not_there_names_those_that_are(state: StateDir) -> None:
    run_id = new_run(state)
    plan_of(Task("a", command=("true",)), run_id=run_id).save(state)
    with pytest.raises(ConfigError, match="no run 'nosuch'") as told:
        Plan.load(state, "nosuch")
    assert run_id in told.value.hint


def test_runs_are_listed_newest_first_and_only_with_a_plan(state: StateDir) -> None:
    made = [new_run(state) for _ in range(4)]
    for age, run_id in enumerate(made[:3]):
        plan_of(Task("a", command=("true",)), run_id=run_id).save(state)
        os.utime(run_folder(state, run_id), (1000 - age, 1000 - age))
    assert runs(state) == made[:3]
    assert len(set(made)) == 4 and all(len(run_id) == 6 for run_id in made)


def test_attempts_are_found_in_order_whatever_else_lies_there(state: StateDir) -> None:
    run_id = new_run(state)
    for name in ("a.1", "a.10", "a.2", "a.b.1", "b.1", "a.x", "plan.json", "launcher.json", "runners.log", ".1"):
        (run_folder(state, run_id) / name).mkdir()
    assert [number for number, _ in attempts(state, run_id, "a")] == [1, 2, 10]
    assert set(attempts_of_all(state, run_id)) == {"a", "a.b", "b"}
    assert dict(attempts(state, run_id, "a.b"))[1] == attempt_folder(state, run_id, "a.b", 1)


# -- what a task is built on


class Builder:
    """A repository in which tasks have left their branches."""

    def __init__(self, repository: Path) -> None:
        self.root = repository
        self.base = self.git("rev-parse", "main")
        self.done: dict[str, Outcome] = {}

    def git(self, *args: str) -> str:
        return sh("git", *args, cwd=self.root)

    def did(self, task_id: str, files: dict[str, str], on: str = "main", ok: bool = True) -> None:
        branch = f"necrocode/run/{task_id}"
        self.git("checkout", "-q", "-b", branch, on)
        base = self.git("rev-parse", "HEAD")
        for name, text in files.items():
            (self.root / name).write_text(text)
        commits: tuple[str, ...] = ()
        if files:
            self.git("add", "-A")
            self.git("commit", "-qm", task_id)
            commits = (self.git("rev-parse", "HEAD"),)
        self.git("checkout", "-q", "main")
        status = Status.DONE if ok else Status.FAILED
        self.done[task_id] = Outcome(task_id, status, branch=branch, base=base, commits=commits)

    def base_of(self, plan: Plan, task_id: str) -> str:
        plan = plan._replace(repository=str(self.root), base=self.base)
        order = plan.order(StateDir(self.root.parent / "state"), plan.task(task_id), 1, self.done)
        return git.rev_parse(order.base, cwd=self.root)

    def files(self, commit: str) -> set[str]:
        return set(self.git("ls-tree", "-r", "--name-only", commit, "--", "one", "two", "three").split())


@pytest.fixture
def built(repository: Path) -> Builder:
    return Builder(repository)


def cmd(task_id: str, **terms: object) -> Task:
    return Task(task_id, command=("true",), **terms)  # type: ignore[arg-type]


def test_without_dependencies_it_is_the_base_of_the_run(built: Builder) -> None:
    built.did("a", {"one": "1"})
    assert built.base_of(plan_of(cmd("a"), cmd("b")), "b") == built.base


def test_one_dependency_is_its_branch(built: Builder) -> None:
    built.did("a", {"one": "1"})
    plan = plan_of(cmd("a"), cmd("b", after=("a",)))
    assert built.base_of(plan, "b") == built.git("rev-parse", "necrocode/run/a")


def test_several_are_their_merge_without_any_work_tree(built: Builder) -> None:
    for name in ("one", "two", "three"):
        built.did(name, {name: name})
    plan = plan_of(cmd("one"), cmd("two"), cmd("three"), cmd("all", after=("three", "one", "two")))
    base = built.base_of(plan, "all")
    assert built.files(base) == {"one", "two", "three"} and built.git("status", "--porcelain") == ""


def test_one_that_contains_the_others_needs_no_merge(built: Builder) -> None:
    built.did("a", {"one": "1"})
    built.did("b", {"two": "2"}, on="necrocode/run/a")
    plan = plan_of(cmd("a"), cmd("b", after=("a",)), cmd("c", after=("a", "b")))
    assert built.base_of(plan, "c") == built.git("rev-parse", "necrocode/run/b")


def test_what_does_not_go_together_names_the_paths(built: Builder) -> None:
    built.did("a", {"one": "1"})
    built.did("b", {"one": "2"})
    with pytest.raises(LandingConflict, match="one"):
        built.base_of(plan_of(cmd("a"), cmd("b"), cmd("c", after=("a", "b"))), "c")


def test_a_dependency_without_commits_passes_on_what_it_was_built_on(built: Builder) -> None:
    built.did("a", {"one": "1"})
    built.did("b", {}, on="necrocode/run/a")
    plan = plan_of(cmd("a"), cmd("b", after=("a",)), cmd("c", after=("b",)))
    assert built.base_of(plan, "c") == built.git("rev-parse", "necrocode/run/a")


def test_earlier_tasks_on_the_same_files_count_like_dependencies(built: Builder) -> None:
    built.did("a", {"one": "1"})
    built.did("b", {"two": "2"})
    built.did("bad", {"three": "3"}, ok=False)
    plan = plan_of(cmd("a", files=("one",)), cmd("b", files=("two",)), cmd("bad", files=("one",)),
                   cmd("c", files=("one", "two")), cmd("reads", claims=("shared:file:one",)))  # fmt: skip
    assert built.files(built.base_of(plan, "c")) == {"one", "two"}
    assert built.files(built.base_of(plan, "reads")) == {"one"}, "what is read is read as it was left"


def test_the_order_says_everything_that_a_runner_needs(state: StateDir) -> None:
    task = Task("a", prompt="x", agent="me", branch="mine", claims=("port:80",))
    plan = plan_of(task, agents={"me": ("me", "{prompt}")}, setup=(("make",),), patience=3.0, heartbeat_timeout=8.0)
    order = plan.order(state, task, 4, {})
    assert order.runner_id == "run.a.4" and order.path == "/work/places/run-a" and order.branch == "mine"
    assert order.agent == ("me", "{prompt}") and order.setup == (("make",),) and order.patience == 3.0
    assert Claim.parse("port:80") in order.claims and order.heartbeat_interval <= 2.0
    plain = plan._replace(mode="none", repository="/here").order(state, task, 1, {})
    assert (plain.path, plain.repository, plain.branch, plain.mode) == ("/here", "", "", "none")
