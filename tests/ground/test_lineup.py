"""Tasks of runs under way that no runner has taken yet, and what each of them waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from necrocode import journal
from necrocode.claim import Claim
from necrocode.launcher import alone
from necrocode.lineup import Unbegun, lineup
from necrocode.order import write_result
from necrocode.outcome import Outcome, Status
from necrocode.runs import Plan, attempt_folder, new_run
from necrocode.statedir import StateDir
from necrocode.task import Task


@pytest.fixture
def state(state_root: Path) -> StateDir:
    return StateDir(state_root / "state")


@pytest.fixture
def plan(state: StateDir) -> Plan:
    after = {"c": ("a", "b"), "d": ("a",)}
    tasks = tuple(Task(name, command=("true",), after=after.get(name, ())) for name in "abcd")
    made = Plan(new_run(state), tasks, {task.id: () for task in tasks}, 2, mode="none")
    made.save(state)
    return made


def ended(state: StateDir, plan: Plan, task_id: str, status: Status) -> None:
    folder = attempt_folder(state, plan.run_id, task_id, 1)
    folder.mkdir()
    write_result(folder, Outcome(task_id, status, 1))


def events(plan: Plan, *told: tuple[str, str]) -> list:
    return [journal.make(kind, task_id=task_id, run_id=plan.run_id) for kind, task_id in told]


def begun(state: StateDir, plan: Plan, task_id: str) -> None:
    attempt_folder(state, plan.run_id, task_id, 1).mkdir()


def test_whoever_is_not_done_or_holds_it_is_in_the_way(state: StateDir, plan: Plan) -> None:
    wanted = (Claim.file("x", "r"),)
    plan = plan._replace(claims={**plan.claims, "b": wanted, "d": wanted})
    plan.save(state)
    ended(state, plan, "a", Status.DONE)
    begun(state, plan, "b")
    with alone(state, plan.run_id, **plan.followed, failed_too=False):
        assert lineup(state, ()) == (
            Unbegun(plan.run_id, "c", ("b",), (), 2),
            Unbegun(plan.run_id, "d", ("b",), ("file:x",), 2),
        )


def test_a_launcher_that_follows_a_part_says_which(state: StateDir, plan: Plan) -> None:
    ended(state, plan, "b", Status.DONE)
    part = plan._replace(tasks=(plan.task("a"), plan.task("c")), jobs=1)
    with alone(state, plan.run_id, **part.followed, failed_too=False):
        assert lineup(state, ()) == (
            Unbegun(plan.run_id, "a", (), (), 1),
            Unbegun(plan.run_id, "c", ("a",), (), 1),
        )


def test_what_had_failed_is_to_come_when_it_is_tried_once_more(state: StateDir, plan: Plan) -> None:
    """Until its new launcher says how it went; what an earlier one cancelled is forgotten."""
    ended(state, plan, "a", Status.FAILED)
    ended(state, plan, "b", Status.DONE)
    earlier = [*events(plan, ("attempt.finished", "a"), ("task.cancelled", "c"), ("task.cancelled", "d"))]
    resumed = journal.make("run.resumed", run_id=plan.run_id)
    with alone(state, plan.run_id, **plan.followed, failed_too=True):
        found = lineup(state, [*earlier, resumed])
        assert [(one.task_id, one.behind) for one in found] == [("a", ()), ("c", ("a",)), ("d", ("a",))]
        assert lineup(state, [*earlier, resumed, *events(plan, ("attempt.finished", "a"))]) == ()
    with alone(state, plan.run_id, **plan.followed, failed_too=False):
        assert lineup(state, [*earlier, resumed]) == ()


@pytest.mark.parametrize(
    ("told", "again"),
    [
        (["attempt.started", "attempt.finished", "attempt.retried"], True),
        (["attempt.started", "attempt.lost", "attempt.retried"], True),
        (["attempt.started", "attempt.finished"], False),
        (["attempt.started", "attempt.lost"], False),
    ],
)
def test_who_is_tried_again_is_to_come_once_more(state: StateDir, plan: Plan, told: list[str], again: bool) -> None:
    ended(state, plan, "a", Status.FAILED)
    with alone(state, plan.run_id):
        found = {one.task_id: one for one in lineup(state, events(plan, *((kind, "a") for kind in told)))}
    assert ("a" in found) is again and (not again or found["a"].again)
    assert ("d" in found) is again and (not again or found["d"].behind == ("a",))


def test_who_will_not_be_started_is_not_to_come(state: StateDir, plan: Plan) -> None:
    with alone(state, plan.run_id):
        found = lineup(state, events(plan, ("task.cancelled", "c"), ("task.cancelled", "b")))
    assert [one.task_id for one in found] == ["a", "d"]


def test_runs_that_nobody_follows_or_nobody_can_read_have_none(state: StateDir, plan: Plan) -> None:
    assert lineup(state, ()) == ()
    with alone(state, plan.run_id):
        (state.runs / plan.run_id / "plan.json").write_text("{")
        assert lineup(state, ()) == ()
