"""Runs of several tasks by real runners: order, bases, retries, strangers, interrupts, and what is on the disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from fleet_bench import Bench, statuses

from necrocode import crew, journal, process
from necrocode import fleet as fleet_room
from necrocode import nursery as nursery_room
from necrocode.claim import Claim
from necrocode.errors import Refused, StateUnusable
from necrocode.fleet import Fleet
from necrocode.launcher import alone
from necrocode.lease import Identity, Request
from necrocode.order import read_result, take, taken_by, write_result
from necrocode.outcome import Outcome, Status
from necrocode.process.who import send
from necrocode.remains import clear_scratch
from necrocode.retry import Policy
from necrocode.runs import Plan, attempt_folder, attempts_of_all
from necrocode.statedir import mark
from necrocode.task import Task
from necrocode.testing import wait_for

DONE, FAILED, CANCELLED = Status.DONE, Status.FAILED, Status.CANCELLED


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def home(bench: Bench) -> Bench:
    return bench.with_repository()


# -- what a task is built on


def test_a_task_builds_on_what_it_comes_after(home: Bench) -> None:
    tasks = [
        home.task("one", "echo 1 > one.txt"),
        home.task("two", "echo 2 > two.txt"),
        home.task("both", "cat one.txt two.txt > both.txt", after=("one", "two")),
        home.task("third", "cat both.txt > third.txt", after=("both",)),
    ]
    plan = home.plan(*tasks)
    outcomes = home.run(plan)
    assert set(statuses(outcomes).values()) == {DONE}
    assert home.git("show", f"{outcomes['third'].branch}:third.txt") == "1\n2"
    assert outcomes["both"].files_changed == ("both.txt",) and len(outcomes["both"].commits) == 1
    assert home.git("rev-parse", "main") == plan.base and home.git("status", "--porcelain") == ""


def test_work_is_passed_on_through_what_leaves_no_commit(home: Bench) -> None:
    tasks = [
        home.task("one", "echo 1 > one.txt"),
        home.task("look", "test -e one.txt", after=("one",)),
        home.task("outside", "true", after=("look",), workspace="none"),
        home.task("last", "cat one.txt > last.txt", after=("outside",)),
    ]
    outcomes = home.run(home.plan(*tasks))
    assert statuses(outcomes)["last"] is DONE, outcomes["last"].error


def test_branches_that_do_not_go_together_need_somebody(home: Bench) -> None:
    tasks = [
        home.task("left", "echo left > a.txt"),
        home.task("right", "echo right > a.txt"),
        home.task("both", after=("left", "right"), retries=3),
        home.task("next", after=("both",)),
    ]
    outcomes = home.run(home.plan(*tasks))
    assert statuses(outcomes) == {"left": DONE, "right": DONE, "both": FAILED, "next": CANCELLED}
    assert outcomes["both"].error_kind == "needs_attention" and "a.txt" in outcomes["both"].error
    assert "are in conflict" in outcomes["both"].error and "let one come after the other" in outcomes["both"].error
    assert ("both", 1) not in home.begun


def test_tasks_that_want_the_same_file_are_put_in_line_and_build_on_each_other(home: Bench) -> None:
    tasks = [home.task(f"t{number}", f"echo {number} >> a.txt", files=("a.txt",)) for number in range(4)]
    outcomes = home.run(home.plan(*tasks, home.task("free", "echo x > c.txt"), jobs=3))
    assert set(statuses(outcomes).values()) == {DONE}
    assert home.git("show", f"{outcomes['t3'].branch}:a.txt").splitlines() == ["a.txt", "0", "1", "2", "3"]
    assert home.heard("behind") == ["t1", "t2", "t3"] and not home.heard("waiting")
    told = journal.read(home.state.events, None, kind="conflict.avoided")
    assert ("t1", "t0") in [(event.task_id, event.facts["after"]) for event in told]


def test_a_named_branch_that_is_there_already_builds_on_what_it_comes_after_as_well(home: Bench) -> None:
    """But not on whoever only had the same file before it: that work may be none of this branch's business."""
    home.git("branch", "mine")
    home.git("branch", "backport")
    tasks = [
        home.task("one", "echo 1 > one.txt; echo 1 >> a.txt", files=("a.txt",), priority=1),
        home.task("two", "cat one.txt > two.txt", after=("one",), branch="mine"),
        home.task("port", "echo 1 >> a.txt; test ! -e one.txt", files=("a.txt",), branch="backport"),
    ]
    outcomes = home.run(home.plan(*tasks))
    assert set(statuses(outcomes).values()) == {DONE}, outcomes
    assert outcomes["two"].files_changed == ("two.txt",) and home.git("show", "mine:a.txt") == "a.txt\n1"
    assert home.git("log", "--format=%s", "main..backport").count("Merge") == 0


def test_a_named_branch_gets_what_it_builds_on_once_however_often_it_is_tried(home: Bench) -> None:
    tasks = [home.task(name, f"echo {name} > {name}.txt") for name in ("one", "two")]
    tasks.append(home.task("both", "test $NECROCODE_ATTEMPT = 3", after=("one", "two"), branch="both", retries=2))
    home.git("branch", "both")
    outcomes = home.run(home.plan(*tasks))
    assert outcomes["both"].ok and outcomes["both"].attempt == 3
    assert home.git("rev-list", "--merges", "--count", "main..both") == "1"


def test_a_named_branch_that_does_not_go_with_what_it_builds_on_needs_somebody(home: Bench) -> None:
    home.git("checkout", "-q", "-b", "mine")
    (home.repository / "a.txt").write_text("mine\n")
    home.git("commit", "-qam", "mine")
    home.git("checkout", "-q", "main")
    tasks = [home.task("one", "echo one > a.txt"), home.task("two", after=("one",), branch="mine", retries=3)]
    outcomes = home.run(home.plan(*tasks))
    assert (outcomes["two"].status, outcomes["two"].error_kind) == (FAILED, "needs_attention")
    assert "one and mine are in conflict: both changed a.txt" in outcomes["two"].error
    assert home.begun == [("one", 1)] and home.git("show", "mine:a.txt") == "mine"


def test_two_tasks_on_one_named_branch_follow_each_other(home: Bench) -> None:
    tasks = [home.task(f"t{n}", f"echo {n} >> c.txt", branch="feature") for n in range(2)]
    assert set(statuses(home.run(home.plan(*tasks))).values()) == {DONE}
    assert home.git("show", "feature:c.txt") == "0\n1"


# -- failing, and trying again


def test_a_retry_holds_no_slot_while_it_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_room, "Policy", partial(Policy, base=5.0))  # seconds: the others begin meanwhile
    tasks = [bench.task("bad", "test $NECROCODE_ATTEMPT = 2", retries=1)]
    tasks += [bench.task(f"t{n}") for n in range(3)]
    outcomes = bench.run(bench.plan(*tasks, jobs=1))
    assert set(statuses(outcomes).values()) == {DONE} and outcomes["bad"].attempt == 2
    assert [name for name, _ in bench.begun] == ["bad", "t0", "t1", "t2", "bad"]


def test_what_comes_after_a_failure_is_given_up_and_the_rest_goes_on(bench: Bench) -> None:
    tasks = [bench.task("bad", "exit 3"), bench.task("next", after=("bad",)), bench.task("other")]
    outcomes = bench.run(bench.plan(*tasks))
    assert statuses(outcomes) == {"bad": FAILED, "next": CANCELLED, "other": DONE}
    assert "bad" in outcomes["next"].error and outcomes["bad"].exit_code == 3


def test_failing_fast_starts_nothing_more(bench: Bench) -> None:
    tasks = [bench.task("bad", "exit 3"), *(bench.task(f"t{n}") for n in range(3))]
    outcomes = bench.run(bench.plan(*tasks, jobs=1, fail_fast=True))
    assert [name for name, _ in bench.begun] == ["bad"]
    assert statuses(outcomes)["t2"] is CANCELLED


@pytest.mark.parametrize("kind", ["not_found", "not_executable"])
def test_what_would_fail_the_same_way_is_not_tried_again(bench: Bench, kind: str) -> None:
    command = ("no-such-program",) if kind == "not_found" else (str(bench.log),)
    outcomes = bench.run(bench.plan(Task("t", command=command, retries=5)))
    assert (outcomes["t"].error_kind, outcomes["t"].attempt) == (kind, 1)


def test_a_task_that_kills_its_own_runner_is_given_up_after_three(bench: Bench) -> None:
    tasks = [bench.task("poison", "kill -9 $PPID; sleep 100", retries=9), *(bench.task(f"t{n}") for n in range(4))]
    outcomes = bench.run(plan := bench.plan(*tasks))
    assert bench.begun.count(("poison", 3)) == 1 and ("poison", 4) not in bench.begun
    assert {name for name, status in statuses(outcomes).items() if status is DONE} == {"t0", "t1", "t2", "t3"}
    assert [result and result.status for result in bench.attempts(plan)["poison"]] == [Status.LOST] * 2 + [FAILED]
    assert (outcomes["poison"].status, outcomes["poison"].attempt) == (FAILED, 3)
    assert outcomes["poison"].error == "its runner died 3 times: not tried again"
    assert statuses(bench.run(plan))["poison"] is FAILED and ("poison", 4) not in bench.begun


# -- strangers


def test_a_stranger_is_waited_for_and_keeps_no_slot_from_others(bench: Bench) -> None:
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    tasks = [bench.task(f"wants{n}", claims=("gpu:0",)) for n in range(2)]
    plan = bench.plan(*tasks, *(bench.task(f"free{n}") for n in range(4)), jobs=2)
    fleet = bench.fleet(plan)
    thread = threading.Thread(target=fleet.run)
    thread.start()
    try:
        wait_for(lambda: len(bench.begun) == 4, within=30.0)
        assert {name for name, _ in bench.begun} == {f"free{n}" for n in range(4)}
        wait_for(lambda: bench.heard("waiting") == ["wants0"])
        assert len(os.listdir(bench.state.queue)) == 1
        detail = next(facts["detail"] for _, what, facts in bench.told if what == "waiting")
        assert "stranger" in detail
    finally:
        bench.ledger.release(stranger)
        thread.join(30)
    assert set(statuses(fleet.outcomes).values()) == {DONE}
    assert fleet.outcomes["wants0"].waited > 0
    bench.assert_at_rest(plan)


def test_no_more_wait_for_strangers_than_may_work(bench: Bench) -> None:
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "**"),)))
    plan = bench.plan(*(bench.task(f"t{n}", claims=(f"gpu:{n}",)) for n in range(5)), jobs=2)
    fleet = bench.fleet(plan)
    thread = threading.Thread(target=fleet.run)
    thread.start()
    try:
        wait_for(lambda: len(bench.heard("waiting")) == 2, within=30.0)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert len(os.listdir(bench.state.queue)) <= 2 and not bench.begun
    finally:
        bench.ledger.release(stranger)
        thread.join(30)
    assert set(statuses(fleet.outcomes).values()) == {DONE}
    bench.assert_at_rest(plan)


def test_when_a_stranger_leaves_no_more_work_than_may(bench: Bench) -> None:
    """Two waited for the stranger, two others took their turns: when he leaves, four could go on, and two do."""
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "**"),)))
    count, go = bench.tmp / "count", bench.tmp / "go"
    script = f"echo + >> {count}; while [ ! -e {go} ]; do sleep 0.02; done; sleep 0.05; echo - >> {count}"
    tasks = [bench.task("w0", script, claims=("gpu:0",)), *(bench.task(f"f{n}", script) for n in range(4))]
    plan = bench.plan(*tasks, bench.task("w1", script, claims=("gpu:1",)))
    fleet = bench.fleet(plan)
    thread = threading.Thread(target=fleet.run)
    thread.start()
    try:
        wait_for(lambda: len(bench.begun) == 2 and "w0" in bench.heard("waiting"), within=30.0)
    finally:
        bench.ledger.release(stranger)
    wait_for(lambda: f"{plan.run_id}.w0.1" in " ".join(os.listdir(bench.state.runners)))
    go.touch()
    thread.join(60)
    assert set(statuses(fleet.outcomes).values()) == {DONE}
    working = most = 0
    for line in count.read_text().split():
        working += 1 if line == "+" else -1
        most = max(most, working)
    assert most == 2
    bench.assert_at_rest(plan)


def test_what_waited_for_a_stranger_goes_on_without_its_launcher(bench: Bench) -> None:
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    plan = bench.plan(bench.task("t", claims=("gpu:0",)))
    with bench.launcher(plan) as launcher:
        wait_for(lambda: os.listdir(bench.state.queue), within=30.0)
        launcher.kill()
    bench.ledger.release(stranger)
    folder = attempt_folder(bench.state, plan.run_id, "t", 1)
    assert wait_for(lambda: read_result(folder), within=30.0).ok
    bench.assert_at_rest(plan)


def test_an_end_that_no_launcher_was_there_to_tell_is_told_by_the_next_one(bench: Bench) -> None:
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    plan = bench.plan(bench.task("t", claims=("gpu:0",)), patience=2.0)
    with bench.launcher(plan) as launcher:
        wait_for(lambda: os.listdir(bench.state.queue), within=30.0)
        launcher.kill()
    folder = attempt_folder(bench.state, plan.run_id, "t", 1)
    wait_for(lambda: read_result(folder), within=30.0)
    bench.ledger.release(stranger)
    for _ in range(2):
        assert bench.resume(plan)["t"]["status"] == "failed"
        (told,) = journal.read(bench.state.events, None, kind="attempt.finished", run_id=plan.run_id)
        assert (told.task_id, told.facts["attempt"], told.facts["status"]) == ("t", 1, "failed")


def test_patience_with_strangers_ends(bench: Bench) -> None:
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    outcomes = bench.fleet(bench.plan(bench.task("t", claims=("gpu:0",)), patience=0.2)).run()
    assert outcomes["t"].status is FAILED and "stranger" in outcomes["t"].error
    bench.ledger.release(stranger)


def test_a_lease_that_is_fenced_from_outside_is_lost_and_done_again(home: Bench) -> None:
    plan = home.plan(home.task("t", "echo $NECROCODE_ATTEMPT > n.txt; test $NECROCODE_ATTEMPT = 2 || sleep 100"))
    plan = plan._replace(heartbeat_timeout=4.0)

    def fence() -> None:
        wait_for(lambda: home.begun, within=30.0)
        assert wait_for(lambda: home.ledger.fence(f"{plan.run_id}.t.1"))

    thread = threading.Thread(target=fence)
    thread.start()
    outcomes = home.run(plan)
    thread.join()
    assert (outcomes["t"].status, outcomes["t"].attempt) == (DONE, 2)
    assert home.git("show", f"{outcomes['t'].branch}:n.txt") == "2"
    assert [result and result.status for result in home.attempts(plan)["t"]] == [Status.LOST, DONE]
    assert home.git("log", "--format=%s", f"{plan.base}..{outcomes['t'].branch}").count("\n") == 0


def stopped_at_work(bench: Bench, plan: Plan, fleet: Fleet) -> tuple[threading.Thread, Identity]:
    """A run whose first attempt works, and whose runner has been stopped meanwhile; the runner."""
    thread = threading.Thread(target=fleet.run)
    thread.start()
    wait_for(lambda: bench.begun, within=30.0)
    carrier = taken_by(attempt_folder(bench.state, plan.run_id, "t", 1))
    assert carrier and send(carrier.pid, carrier.start_ticks, signal.SIGSTOP)
    return thread, carrier


def test_a_runner_that_stays_stopped_loses_its_attempt_and_finds_that_out_when_it_wakes(bench: Bench) -> None:
    """The agent of the stopped runner is ended; its task is done by another; nothing is published twice."""
    late = bench.tmp / "late"
    script = f"test $NECROCODE_ATTEMPT = 2 || {{ sleep 100 && touch {late}; }}"
    plan = bench.plan(bench.task("t", script), heartbeat_timeout=4.0, grace=60.0)
    fleet = bench.fleet(plan)
    thread, carrier = stopped_at_work(bench, plan, fleet)
    wait_for(lambda: bench.heard("finished"), within=60.0)
    assert process.marked(mark(bench.state.root, f"{plan.run_id}.t.1")) == []
    assert not process.is_gone(carrier)
    assert send(carrier.pid, carrier.start_ticks, signal.SIGCONT)
    thread.join(30)
    assert not thread.is_alive() and (fleet.outcomes["t"].status, fleet.outcomes["t"].attempt) == (DONE, 2)
    first, second = bench.attempts(plan)["t"]
    assert first and (first.status, first.error_kind) == (Status.LOST, "lost") and "no sign of life" in first.error
    assert second and second.ok and "no sign of life" in fleet_words(bench, "retrying")
    wait_for(lambda: process.is_gone(carrier), within=30.0)
    kinds = [event.kind for event in journal.story(bench.state.events, runner_id=f"{plan.run_id}.t.1")]
    assert "lease.fenced" in kinds and "lease.published" not in kinds and not late.exists()
    bench.assert_at_rest(plan)


def fleet_words(bench: Bench, what: str) -> str:
    return " ".join(str(facts.get("error")) for _, said, facts in bench.told if said == what)


def test_a_runner_that_never_wakes_does_not_keep_its_workspace_for_ever(home: Bench) -> None:
    script = "echo $NECROCODE_ATTEMPT > n.txt; test $NECROCODE_ATTEMPT = 2 || sleep 100"
    plan = home.plan(home.task("t", script), heartbeat_timeout=4.0, grace=1.0)
    fleet = home.fleet(plan)
    thread, carrier = stopped_at_work(home, plan, fleet)
    thread.join(90)
    assert not thread.is_alive() and process.is_gone(carrier)
    assert [result and result.status for result in home.attempts(plan)["t"]] == [Status.LOST, DONE]
    assert home.git("show", f"{fleet.outcomes['t'].branch}:n.txt") == "2"
    home.assert_at_rest(plan)


def test_a_task_whose_runners_all_stop_is_given_up_after_three(bench: Bench) -> None:
    """Poison, whether it kills its runner or only stops it."""
    plan = bench.plan(bench.task("t", "kill -STOP $PPID; sleep 100"), heartbeat_timeout=1.0, grace=0.5)
    fleet = bench.fleet(plan)
    assert statuses(fleet.run()) == {"t": FAILED} and fleet.schedule.standing("t").status is FAILED
    assert [result and result.status for result in bench.attempts(plan)["t"]] == [Status.LOST] * 2 + [FAILED]
    for folder in attempts_of_all(bench.state, plan.run_id)["t"]:
        carrier = taken_by(folder[1])
        assert carrier
        send(carrier.pid, carrier.start_ticks, signal.SIGKILL)
        wait_for(lambda: process.is_gone(carrier))  # noqa: B023
    clear_scratch(bench.state, plan.run_id)
    bench.assert_at_rest(plan)


# -- stopping


def test_interrupted_once_it_starts_nothing_more_and_lets_run_what_runs(bench: Bench) -> None:
    go = bench.tmp / "go"
    waits = f"while [ ! -e {go} ]; do sleep 0.02; done"
    plan = bench.plan(*(bench.task(f"t{n}", waits) for n in range(4)))
    fleet = bench.fleet(plan)
    thread = threading.Thread(target=fleet.run)
    thread.start()
    wait_for(lambda: len(bench.begun) == 2, within=30.0)
    fleet.interrupt()
    wait_for(lambda: bench.heard("interrupted"))
    go.touch()
    thread.join(30)
    assert statuses(fleet.outcomes) == {"t0": DONE, "t1": DONE, "t2": CANCELLED, "t3": CANCELLED}
    assert fleet.interrupted
    bench.assert_at_rest(plan)
    assert statuses(bench.run(plan)) == dict.fromkeys(["t0", "t1", "t2", "t3"], DONE)
    assert sorted(bench.begun) == [("t0", 1), ("t1", 1), ("t2", 1), ("t3", 1)]


def test_interrupted_twice_it_ends_what_runs_and_what_waits(bench: Bench) -> None:
    stranger = bench.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    waits, later = bench.task("waits", claims=("gpu:0",)), bench.task("later", after=("runs",))
    plan = bench.plan(bench.task("runs", "sleep 100"), waits, later)
    fleet = bench.fleet(plan)

    def interrupt() -> None:
        wait_for(lambda: bench.begun and "waits" in bench.heard("waiting"), within=30.0)
        fleet.interrupt(2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    outcomes = fleet.run()
    thread.join()
    assert set(statuses(outcomes).values()) == {CANCELLED} and time.monotonic() - began < 60
    bench.ledger.release(stranger)
    bench.assert_at_rest(plan)


def test_an_interrupt_before_and_after_the_run_does_no_harm(bench: Bench) -> None:
    fleet = bench.fleet(bench.plan(bench.task("t")))
    fleet.interrupt()
    assert statuses(fleet.run()) == {"t": CANCELLED} and bench.begun == []
    fleet.interrupt(2)


def test_a_task_that_somebody_else_stops_is_cancelled_and_the_run_goes_on(bench: Bench) -> None:
    plan = bench.plan(bench.task("stopped", "sleep 100", retries=3), *(bench.task(f"t{n}") for n in range(3)), jobs=1)
    fleet = bench.fleet(plan)
    thread = threading.Thread(target=fleet.run)
    thread.start()
    wait_for(lambda: bench.begun, within=30.0)
    carrier = taken_by(attempt_folder(bench.state, plan.run_id, "stopped", 1))
    assert carrier
    wait_for(lambda: "work" in [what for task_id, what, _ in bench.told if task_id == "stopped"])
    send(carrier.pid, carrier.start_ticks, 15)  # type: ignore[arg-type]
    thread.join(30)
    assert not thread.is_alive()
    expected = {"stopped": CANCELLED, "t0": DONE, "t1": DONE, "t2": DONE}
    assert statuses(fleet.outcomes) == expected
    assert [number for _, number in bench.begun] == [1] * 4, "nothing was lost with the runner that left"
    bench.assert_at_rest(plan)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("last", ["t0", "t1"])
def test_a_runner_that_is_ended_while_idle_costs_no_attempt_and_leaves_nothing(
    bench: Bench, number: signal.Signals, last: str
) -> None:
    """Also when it had only to be dismissed."""
    plan = bench.plan(bench.task("t0"), bench.task("t1", after=("t0",)), jobs=1)
    fleet = bench.fleet(plan)
    hear, done = fleet._listener, []

    def on_told(task_id: str, what: str, facts: dict[str, object]) -> None:
        hear(task_id, what, facts)
        if (task_id, what) == (last, "finished"):
            carrier = taken_by(attempt_folder(bench.state, plan.run_id, last, 1))
            assert carrier and send(carrier.pid, carrier.start_ticks, number)
            done.append(wait_for(lambda: process.is_gone(carrier)))

    fleet._listener = on_told
    assert set(statuses(fleet.run()).values()) == {DONE} and done
    assert bench.begun == [("t0", 1), ("t1", 1)] and not bench.heard("lost")
    assert [len(results) for results in bench.attempts(plan).values()] == [1, 1]
    bench.assert_at_rest(plan)


def test_runners_that_die_before_they_are_born_cost_no_attempt(bench: Bench) -> None:
    """The nursery is killed while it starts; another takes its place."""
    plan = bench.plan(*(bench.task(f"t{n}") for n in range(3)), jobs=2)
    fleet = bench.fleet(plan)
    hear, killed = fleet._listener, []

    def on_told(task_id: str, what: str, facts: dict[str, object]) -> None:
        hear(task_id, what, facts)
        nursery = fleet._crew._nursery._process
        if what == "started" and nursery and len(killed) < 2:
            killed.append(nursery.pid)
            nursery.kill()

    fleet._listener = on_told
    assert set(statuses(fleet.run()).values()) == {DONE} and len(killed) == 2
    assert [len(results) for results in bench.attempts(plan).values()] == [1, 1, 1]
    bench.assert_at_rest(plan)


def test_a_nursery_that_stays_stopped_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_BIRTH", 5.0)
    plan = bench.plan(*(bench.task(f"t{n}") for n in range(3)), jobs=2)
    fleet = bench.fleet(plan)
    hear, stopped = fleet._listener, []

    def on_told(task_id: str, what: str, facts: dict[str, object]) -> None:
        hear(task_id, what, facts)
        nursery = fleet._crew._nursery._process
        if what == "started" and nursery and not stopped:
            stopped.append(nursery)
            nursery.send_signal(signal.SIGSTOP)

    fleet._listener = on_told
    assert set(statuses(fleet.run()).values()) == {DONE} and stopped[0].wait(10) == -signal.SIGKILL
    assert [len(results) for results in bench.attempts(plan).values()] == [1, 1, 1]
    bench.assert_at_rest(plan)


def test_runners_that_never_come_to_speak_are_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery_room, "_command", lambda root: (["false"], None))
    plan = bench.plan(bench.task("t"), jobs=1)
    assert statuses(bench.fleet(plan).run()) == {"t": FAILED} and bench.begun == []


# -- one launcher, and what earlier ones left


def test_a_second_launcher_is_refused_and_the_first_is_named(bench: Bench) -> None:
    plan = bench.plan(bench.task("t"))
    with alone(bench.state, plan.run_id), pytest.raises(Refused, match=f"pid {os.getpid()}"):
        bench.fleet(plan).run()
    assert statuses(bench.run(plan)) == {"t": DONE}


def folder_of(bench: Bench, plan: Plan, task_id: str, number: int, *, task: bool = True) -> Path:
    folder = attempt_folder(bench.state, plan.run_id, task_id, number)
    folder.mkdir(mode=0o700)
    if task:
        order = plan.order(bench.state, plan.task(task_id), number, {})
        (folder / "task.json").write_text(__import__("json").dumps(order.to_dict()))
    return folder


def test_what_is_done_is_not_repeated(bench: Bench) -> None:
    plan = bench.plan(bench.task("a"), bench.task("b", after=("a",)), bench.task("c"))
    assert set(statuses(bench.run(plan)).values()) == {DONE}
    bench.told.clear()
    before = list(journal.read(bench.state.events, None, kind="attempt.started"))
    outcomes = bench.run(plan)
    assert set(statuses(outcomes).values()) == {DONE} and len(bench.begun) == 3
    assert list(journal.read(bench.state.events, None, kind="attempt.started")) == before


@pytest.mark.parametrize("task", [False, True])
def test_an_attempt_that_nobody_began_costs_nothing(bench: Bench, task: bool) -> None:
    plan = bench.plan(bench.task("t"))
    for number in range(1, 6):
        folder_of(bench, plan, "t", number, task=task)
    outcomes = bench.run(plan)
    assert (outcomes["t"].status, outcomes["t"].attempt) == (DONE, 6) and bench.begun == [("t", 6)]
    assert {result and result.error_kind for result in bench.attempts(plan)["t"][:5]} == {"not_begun"}
    assert not take(attempt_folder(bench.state, plan.run_id, "t", 1))


def test_an_attempt_that_wrote_something_was_begun_whoever_it_was(bench: Bench) -> None:
    """Its runner.json may have gone to quarantine since."""
    plan = bench.plan(bench.task("t"))
    folder = folder_of(bench, plan, "t", 1)
    (folder / "stdout.log").touch()
    assert bench.run(plan)["t"].attempt == 2
    assert read_result(folder).status is Status.LOST  # type: ignore[union-attr]


def test_an_attempt_of_a_dead_runner_is_done_again(bench: Bench) -> None:
    plan = bench.plan(bench.task("t"))
    folder = folder_of(bench, plan, "t", 1)
    gone = process.identity()._replace(pid=2**22 - 7, start_ticks=1)
    (folder / "runner.json").write_text(__import__("json").dumps(gone._asdict()))
    outcomes = bench.run(plan)
    assert (outcomes["t"].status, outcomes["t"].attempt) == (DONE, 2)
    assert read_result(folder).status is Status.LOST  # type: ignore[union-attr]


def test_what_failed_is_tried_again_only_when_asked(bench: Bench) -> None:
    plan = bench.plan(bench.task("bad", f"test -e {bench.tmp}/good"), bench.task("next", after=("bad",)))
    assert statuses(bench.run(plan)) == {"bad": FAILED, "next": CANCELLED}
    assert statuses(bench.run(plan)) == {"bad": FAILED, "next": CANCELLED} and len(bench.begun) == 1
    (bench.tmp / "good").touch()
    assert statuses(bench.run(plan, retry_failed=True)) == {"bad": DONE, "next": DONE}
    assert bench.begun == [("bad", 1), ("bad", 2), ("next", 1)]


def test_a_result_that_cannot_be_read_is_put_aside_and_counts_as_none(bench: Bench) -> None:
    plan = bench.plan(bench.task("t"), bench.task("u"))
    bench.run(plan)
    path = attempt_folder(bench.state, plan.run_id, "t", 1) / "result.json"
    path.write_text('{"half": ')
    outcomes = bench.run(plan)
    assert (outcomes["t"].status, outcomes["t"].attempt) == (DONE, 2) and outcomes["u"].attempt == 1
    assert [name for name in os.listdir(bench.state.quarantine_folder) if name.startswith("result.json")]


def test_what_a_runner_left_behind_of_a_task_that_is_done_is_cleared(home: Bench) -> None:
    plan = home.plan(home.task("t", "echo 1 > one.txt"), keep_workspaces=True)
    home.fleet(plan).run()
    assert (home.tmp / "work" / f"{plan.run_id}-t").exists(), "as if the runner had been killed just before"
    plan = plan._replace(keep_workspaces=False)
    home.run(plan)
    assert not (home.tmp / "work" / f"{plan.run_id}-t").exists()


def test_what_a_broken_record_of_a_task_says_is_told(bench: Bench) -> None:
    plan = bench.plan(bench.task("t"))
    fleet = bench.fleet(plan)
    hear = fleet._listener

    def on_told(task_id: str, what: str, facts: dict[str, object]) -> None:
        hear(task_id, what, facts)
        if what == "started" and facts["attempt"] == 1:
            folder = attempt_folder(bench.state, plan.run_id, "t", 1)
            write_result(folder, Outcome("t", FAILED, 1, "somebody was faster", ended=time.time()))

    fleet._listener = on_told
    assert statuses(fleet.run())["t"] in (FAILED, DONE)


def test_a_state_directory_that_goes_away_is_told(bench: Bench) -> None:
    plan = bench.plan(bench.task("t0"), bench.task("t1", after=("t0",)), jobs=1)
    fleet = bench.fleet(plan)

    def on_told(task_id: str, what: str, facts: dict[str, object]) -> None:
        if (task_id, what) == ("t0", "finished"):
            os.rename(bench.state.runs / plan.run_id, bench.tmp / "away")

    fleet._listener = on_told
    with pytest.raises(StateUnusable, match="No such file"):
        fleet.run()


# -- many, and fast


def test_hundreds_of_tasks_that_do_nothing(bench: Bench) -> None:
    plan = bench.plan(*(Task(f"t{n}", command=("true",)) for n in range(300)))
    began = time.monotonic()
    outcomes = bench.run(plan)
    took = time.monotonic() - began
    assert set(statuses(outcomes).values()) == {DONE}
    assert took < 30, f"{took:.1f} s for 300 tasks"


def test_a_daemon_that_hides_from_its_runner_is_ended_all_the_same(bench: Bench, tmp_path: Path) -> None:
    """It left its session, lost its parent, and has an empty environment: only its being an orphan tells."""
    pid_file = tmp_path / "pid"
    hide = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        "        os.execve('/bin/sleep', ['sleep', '600'], {})\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    bench.run(bench.plan(Task("hider", command=(sys.executable, "-c", hide))))
    pid = int(pid_file.read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), within=20)
