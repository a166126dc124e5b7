"""The end of a run as a person reads it: words are whole on narrow screens, and what went wrong stands last."""

import io

import pytest

from necrocode.outcome import Outcome, Status
from necrocode.progress import Kept, Lines, Progress, closing, summary
from necrocode.runs import Plan
from necrocode.task import Task

TASKS = ("a-task-with-quite-a-long-name", "second", "third", "fourth")
PLAN = Plan("k3x", tuple(Task(id) for id in TASKS), {}, 2)
OUTCOMES = {
    TASKS[0]: Outcome(
        TASKS[0], Status.TIMED_OUT, error="it took more than 30 s, which nobody had time for", error_kind="timeout"
    ),
    "second": Outcome("second", Status.DONE, branch="necrocode/k3x/second", commits=("c",), files_changed=("x",)),
    "third": Outcome("third", Status.DONE, branch="mine", commits=("c",)),
}


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_how_a_task_ended_is_never_cut(width):
    lines = summary(PLAN, OUTCOMES, width, colored=False)
    assert max(map(len, lines)) <= width
    assert [any(word in line for line in lines) for word in ("timed_out", "done", "not begun")] == [True] * 3


def test_what_is_not_done_stands_last():
    ids = [line.split()[0] for line in summary(PLAN, OUTCOMES, 200, colored=False)]
    assert ids == ["TASK", "second", "third", TASKS[0], "fourth"]


def test_only_unusual_branches_are_named_in_the_table():
    text = "\n".join(summary(PLAN, OUTCOMES, 200, colored=False))
    assert "mine" in text and "necrocode/" not in text


def test_the_last_lines_say_how_many_where_the_work_is_and_what_to_type():
    said = list(closing(PLAN, OUTCOMES, colored=False))
    assert said == [
        "run k3x: 4 tasks, 1 timed_out, 2 done, 1 not begun",
        "the work of each is on its branch: necrocode/k3x/TASK",
        f"see: necrocode logs k3x/{TASKS[0]}   then: necrocode retry k3x",
    ]


@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"third": Outcome("third", Status.CANCELLED, 0, "interrupted", "cancelled")},
        {"third": Outcome("third", Status.CANCELLED, 1, "sh was stopped after 1.0 s", "stopped")},
    ],
)
def test_after_an_interrupt_the_way_on_is_told(rest):
    said = list(closing(PLAN, {"second": OUTCOMES["second"], **rest}, colored=False))
    assert said[-1] == "go on with: necrocode run --resume k3x"


@pytest.mark.parametrize(
    ("kind", "verb"), [("work", "logs"), ("verify", "logs"), ("not_found", "why"), ("needs_attention", "why")]
)
def test_where_no_program_ran_there_are_no_logs_to_see(kind, verb):
    said = list(closing(PLAN, {"third": Outcome("third", Status.FAILED, error="x", error_kind=kind)}, colored=False))
    assert said[-1] == f"see: necrocode {verb} k3x/third   then: necrocode retry k3x"


def test_what_was_kept_is_told():
    kept = [Kept("second", "/w/k3x-second", "another repository is nested in it"), Kept(TASKS[0], "/w/x", "it failed")]
    lines = "\n".join(closing(PLAN, OUTCOMES, colored=False, kept=kept))
    assert "what was committed is on its branch" in lines and "it failed" not in lines
    assert "kept: /w/k3x-second: another repository is nested in it\nlook into what was kept; necrocode gc" in lines
    nothing = {"second": Outcome("second", Status.DONE, branch="necrocode/k3x/second")}
    assert "nothing to commit" in "\n".join(summary(PLAN, nothing, 200, colored=False))
    shown = "\n".join(summary(PLAN, nothing, 200, colored=False, kept=kept))
    assert "its workspace was kept" in shown and "nothing to commit" not in shown


def test_one_task_is_no_tasks():
    stream = io.StringIO()
    Progress(PLAN._replace(tasks=(Task("a"),)), Lines(stream)).begin()
    assert stream.getvalue() == "run k3x: 1 task, 2 at once\n"
