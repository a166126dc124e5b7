"""The coordinator and the context of S2: what the document's own tests assert, and what its prose promises."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from s2_runners import add, leaves_when_awaited, let_go, runners

from necrocode import journal
from necrocode.agent_runner import (
    ParallelCoordinator,
    ParallelExecutionContext,
    ResourceConflictError,
    ResourceLimitError,
    RunnerInstance,
)
from necrocode.errors import ConfigError, LeaseLost
from necrocode.testing import wait_for

# ---- what the document's own tests assert (numbers as in its list)


def test_01_registers_one(coordinator):
    """S2-12: register one, count 1."""
    assert add(coordinator, 1) is True
    assert coordinator.get_concurrent_count() == 1


def test_02_registers_three(coordinator):
    assert [add(coordinator, n) for n in (1, 2, 3)] == [True, True, True]
    assert coordinator.get_concurrent_count() == 3


def test_03_and_18_the_fourth_of_three_is_refused(coordinator):
    """S2-07: the limit is hard, and the count stays."""
    for number in (1, 2, 3):
        add(coordinator, number)
    assert add(coordinator, 4) is False
    assert coordinator.get_concurrent_count() == 3


def test_04_unregistering_frees_the_slot(coordinator):
    """S2-12: unregister frees slot, work space, files and branches."""
    add(coordinator, 1, files=["a.py"], branches=["b"])
    coordinator.unregister_runner("runner-1")
    assert coordinator.get_concurrent_count() == 0
    assert coordinator.register_runner("runner-2", "t", "s", "/tmp/workspace1", ["a.py"], ["b"])


def test_05_file_conflicts_name_file_and_holder(coordinator):
    """S2-03: in the printed format."""
    add(coordinator, 1), add(coordinator, 2)
    coordinator.update_resources("runner-1", files={"main.py", "utils.py"})
    found = coordinator.detect_conflicts("runner-2", files={"main.py", "config.py"})
    assert found == ["File conflict with runner runner-1: main.py"]


def test_06_and_20_branch_conflicts_name_branch_and_holder(coordinator):
    """S2-04: in the printed format; files first, then branches."""
    add(coordinator, 1), add(coordinator, 2)
    coordinator.update_resources("runner-1", files=["b.py", "a.py"], branches=["feature/task-1"])
    assert coordinator.detect_conflicts("runner-2", files=["a.py", "b.py"], branches=["feature/task-1"]) == [
        "File conflict with runner runner-1: a.py, b.py",
        "Branch conflict with runner runner-1: feature/task-1",
    ]


def test_07_other_files_and_branches_are_no_conflict(coordinator):
    add(coordinator, 1), add(coordinator, 2)
    coordinator.update_resources("runner-1", files=["main.py"], branches=["feature/task-1"])
    assert coordinator.detect_conflicts("runner-2", files=["other.py"], branches=["feature/task-2"]) == []


def test_08_one_workspace_one_runner(coordinator):
    """S2-02: a second runner in the work space is refused, with holder and reason."""
    add(coordinator, 1)
    refused = coordinator.try_register("runner-2", "t", "s", "/tmp/workspace1")
    assert (refused.granted, refused.reason) == (False, "workspace")
    assert not refused
    assert [holder.runner_id for holder in refused.holders] == ["runner-1"]
    assert refused.holders[0].since is not None
    assert coordinator.detect_conflicts("runner-9", workspace_path="/tmp/workspace1/nested") == [
        "Workspace conflict with runner runner-1: /tmp/workspace1/nested"
    ]


def test_09_a_heartbeat_keeps_a_runner(coordinator):
    add(coordinator, 1)
    coordinator.update_heartbeat("runner-1")
    assert coordinator.get_concurrent_count() == 1


def test_10_a_silent_runner_is_not_counted(state):
    """S2-13, S2-42: removed by whoever looks, and it learns of it (S2-57)."""
    coordinator = ParallelCoordinator(state, heartbeat_timeout_seconds=0.05)
    add(coordinator, 1)
    wait_for(lambda: coordinator.get_concurrent_count() == 0)
    with pytest.raises(LeaseLost):
        coordinator.update_heartbeat("runner-1")
    with pytest.raises(LeaseLost):
        coordinator.update_resources("runner-1", files=["a.py"])
    assert add(coordinator, 1), "its own process may register it anew"
    let_go(coordinator)


def test_11_12_and_19_wait_time(coordinator):
    """S2-36: 0.0 below the limit, more than 0 at it; infinite as long as nothing is known."""
    assert add(coordinator, 1)
    assert coordinator.get_wait_time() == 0.0
    add(coordinator, 2), add(coordinator, 3)
    assert coordinator.get_wait_time() == math.inf


def test_13_status(coordinator):
    """S2-37: active, max, and per runner id, task, spec and elapsed seconds."""
    add(coordinator, 1), add(coordinator, 2)
    status = coordinator.get_status()
    assert (status["active_runners"], status["max_parallel_runners"]) == (2, 3)
    assert [runner["runner_id"] for runner in status["runners"]] == ["runner-1", "runner-2"]
    first = status["runners"][0]
    assert (first["task_id"], first["spec_name"]) == ("task-1", "spec")
    assert 0 <= first["elapsed_seconds"] < 60
    json.dumps(status)


def test_durations_do_not_follow_the_wall_clock(coordinator, state):
    """A clock that was put forward by an hour while a runner ran makes it neither older nor a longer one."""
    add(coordinator, 1)
    lease = coordinator.lease("runner-1")
    hour_ago = lease.record.start_time - timedelta(hours=1)
    lease.record = lease.record._replace(start_time=hour_ago)
    coordinator.update_resources("runner-1", files=["a.py"])
    (told,) = coordinator.get_status()["runners"]
    assert coordinator.get_runners()[0].start_time == hour_ago and 0 <= told["elapsed_seconds"] < 600
    coordinator.unregister_runner("runner-1")
    (released,) = journal.read(state / "events", kind="lease.released")
    assert 0 <= released.facts["held"] < 600


def test_14_the_context_registers_and_unregisters(coordinator):
    """S2-15."""
    with ParallelExecutionContext(coordinator, "runner-1", "t", "s", Path("/tmp/workspace1")) as context:
        assert coordinator.get_concurrent_count() == 1
        assert context.token > 0
        assert context.waited == 0.0
        context.update_heartbeat_if_needed()
    assert coordinator.get_concurrent_count() == 0


def test_15_the_context_at_the_limit_raises(coordinator):
    """S2-18: the body does not run, nothing is left."""
    for number in (1, 2, 3):
        add(coordinator, number)
    context = ParallelExecutionContext(coordinator, "runner-4", "t", "s", Path("/tmp/workspace4"))
    with pytest.raises(RuntimeError) as raised, context:
        pytest.fail("the body ran")
    assert isinstance(raised.value, ResourceLimitError)
    assert (raised.value.live, raised.value.limit) == (3, 3)
    assert coordinator.get_concurrent_count() == 3
    assert not [name for name in os.listdir(coordinator.coordination_dir / "live") if "runner-4" in name]


def test_16_five_threads_at_a_limit_of_three(coordinator):
    """S2-38: threads that share one object."""
    granted = in_threads(5, lambda number: add(coordinator, number))
    assert sorted(granted) == [False, False, True, True, True]
    assert coordinator.get_concurrent_count() == 3


def test_17_heartbeats_from_threads(coordinator):
    for number in (1, 2, 3):
        add(coordinator, number)
    in_threads(3, lambda number: [coordinator.update_heartbeat(f"runner-{number + 1}") for _ in range(10)])
    assert coordinator.get_concurrent_count() == 3


def test_28_registering_is_fast(coordinator):
    """S2-50: register and unregister take less than 10 ms on average: the middle one of all, which no stall moves."""
    times = []
    for number in range(50):
        started = time.monotonic()
        add(coordinator, number)
        coordinator.unregister_runner(f"runner-{number}")
        times.append(time.monotonic() - started)
    assert statistics.median(times) < 0.010


def in_threads(count: int, work):
    answers: list = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        answers[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# ---- refusals, and claiming in one step


def test_a_refusal_says_why(coordinator):
    """Limit, workspace, branch, file and duplicate id are told apart."""
    add(coordinator, 1, files=["a.py"], branches=["fix"])

    def reason(number: int, workspace: str, **more) -> str | None:
        return coordinator.try_register(f"runner-{number}", "t", "s", workspace, **more).reason

    assert reason(1, "/tmp/elsewhere") == "duplicate"
    assert reason(2, "/tmp/workspace1") == "workspace"
    assert reason(2, "/tmp/workspace2", files=["a.py"]) == "file"
    assert reason(2, "/tmp/workspace2", branches=["fix"]) == "branch"
    add(coordinator, 2), add(coordinator, 3)
    assert reason(4, "/tmp/workspace4") == "limit"


def test_update_resources_replaces_each_given_kind(coordinator):
    """S2-29: and keeps the other; a conflict refuses and changes nothing."""
    add(coordinator, 1, files=["a.py"], branches=["one"])
    coordinator.update_resources("runner-1", files=["b.py", "c.py"])
    (record,) = coordinator.get_runners()
    assert (record.files_locked, record.branches_used) == ({"b.py", "c.py"}, {"one"})
    add(coordinator, 2, files=["a.py"])
    with pytest.raises(ResourceConflictError) as raised:
        coordinator.update_resources("runner-2", files=["c.py", "d.py"])
    assert "runner-1" in raised.value.conflicts[0]
    assert coordinator.get_runners()[1].files_locked == {"a.py"}
    assert coordinator.register_runner("runner-3", "t", "s", "/tmp/workspace3", files=["d.py"])


@pytest.mark.parametrize("strategy", ["refuse", "wait"])
def test_an_update_that_fails_gives_nothing_back(coordinator, strategy):
    """S2-29: whoever waited in vain, or would have waited in a circle, has what it had."""
    add(coordinator, 1, files=["a.py"])
    add(coordinator, 2, files=["b.py"])
    more = {"on_conflict": strategy, "timeout": 0.05}
    with pytest.raises(ResourceConflictError):
        coordinator.update_resources("runner-2", files=["a.py"], **more)
    assert [one.files_locked for one in coordinator.get_runners()] == [{"a.py"}, {"b.py"}]
    coordinator.unregister_runner("runner-1")
    coordinator.update_resources("runner-2", files=["a.py"], **more)
    assert [one.files_locked for one in coordinator.get_runners()] == [{"a.py"}]


@pytest.mark.parametrize("strategy", ["refuse", "wait"])
def test_two_threads_replace_what_one_runner_holds(coordinator, strategy):
    """S2-29: in one step, so what is left is what one of them said, never both."""
    add(coordinator, 1)
    for _ in range(60):
        start = threading.Barrier(2)

        def replace(name, start=start):
            start.wait()
            coordinator.update_resources("runner-1", files=[name], on_conflict=strategy)

        threads = [threading.Thread(target=replace, args=(name,)) for name in ("a.py", "b.py")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert coordinator.get_runners()[0].files_locked in ({"a.py"}, {"b.py"})


def test_update_resources_of_nobody(coordinator):
    """A claim that was not made is never passed over in silence; a heartbeat of nobody is only logged."""
    with pytest.raises(LeaseLost):
        coordinator.update_resources("nobody", files=["a.py"])
    coordinator.update_heartbeat("nobody")
    coordinator.unregister_runner("nobody")


def test_warn_goes_on_without_the_claim(state, caplog):
    """S2-45, S2-54: a warning in the log, and the rest is claimed; a work space refuses all the same."""
    coordinator = ParallelCoordinator(state, on_conflict="warn")
    add(coordinator, 1, files=["a.py", "b.py"], branches=["one"])
    assert add(coordinator, 2, files=["a.py", "c.py"], branches=["one"])
    assert coordinator.get_runners()[1].files_locked == {"c.py"}
    assert "runner-1" in caplog.text
    coordinator.update_resources("runner-2", files=["b.py", "d.py"])
    assert coordinator.get_runners()[1].files_locked == {"d.py"}
    assert not coordinator.register_runner("runner-3", "t", "s", "/tmp/workspace1")
    let_go(coordinator)


def test_wait_is_granted_when_the_holder_leaves(coordinator, state):
    """S2-54: `on_conflict="wait"` waits for the claim, and says how long it took."""
    with runners(1, state) as (other,):
        assert other.call("register_runner", "other", "t", "s", "/tmp/other", ["a.py"])
        leaves_when_awaited(other, "other", state)
        found = coordinator.try_register(
            "runner-1", "t", "s", "/tmp/workspace1", files=["a.py"], on_conflict="wait", timeout=20
        )
        assert found.granted
        assert found.waited > 0


def test_waiting_for_a_conflict_is_not_waiting_for_a_slot(coordinator):
    """`on_conflict="wait"` alone: at the limit the refusal comes at once."""
    for number in (1, 2, 3):
        add(coordinator, number)
    refused = coordinator.try_register("runner-4", "t", "s", "/tmp/w4", on_conflict="wait", timeout=3)
    assert (refused.reason, refused.waited) == ("limit", 0.0)


def test_an_explicit_refusal_holds_while_waiting_for_a_slot(coordinator):
    """`wait=True, on_conflict="refuse"`: a slot is waited for, a conflict is not."""
    add(coordinator, 1, files=["a.py"])
    more = {"files": ["a.py"], "wait": True, "on_conflict": "refuse", "timeout": 3}
    refused = coordinator.try_register("runner-4", "t", "s", "/tmp/w4", **more)
    assert (refused.reason, refused.waited) == ("file", 0.0)


def test_waiting_ends_with_its_timeout(coordinator):
    """A refusal after waiting carries how long."""
    add(coordinator, 1, files=["a.py"])
    began = time.monotonic()
    refused = coordinator.try_register("runner-2", "t", "s", "/tmp/w2", files=["a.py"], wait=True, timeout=0.05)
    took = time.monotonic() - began
    assert (refused.granted, refused.reason) == (False, "file")
    assert took >= 0.05 and 0 < refused.waited <= took


@pytest.mark.parametrize(
    "odd", [{"task_id": 7}, {"spec_name": None}, {"workspace_path": ""}, {"workspace_path": None},
            {"workspace_path": "a\0b"}, {"priority": 1.0}, {"priority": True}],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(coordinator, odd):
    """A record that nobody can read would keep everybody out for as long as its runner lives."""
    asked = {"runner_id": "odd", "task_id": "t", "spec_name": "s", "workspace_path": "/tmp/w", **odd}
    with pytest.raises(ConfigError):
        coordinator.try_register(**asked)
    assert add(coordinator, 1)
    assert coordinator.get_concurrent_count() == 1


@pytest.mark.parametrize("bad", ["../evil", "", "a/b", ".hidden", "x" * 129, "a\0b"])
def test_bad_ids_are_refused_and_write_nothing(coordinator, state, bad):
    before = sorted(path for path in state.rglob("*") if path.name != "lock")
    with pytest.raises(ConfigError):
        coordinator.register_runner(bad, "t", "s", "/tmp/w")
    assert sorted(path for path in state.rglob("*") if path.name != "lock") == before
    assert not (state.parent / "evil.json").exists()


@pytest.mark.parametrize("limit", [0, -1, True, "3", 1.5])
def test_impossible_limits_are_refused(state, limit):
    """S2-34."""
    with pytest.raises(ConfigError):
        ParallelCoordinator(state, max_parallel_runners=limit)


def test_the_directory_may_be_text(state):
    coordinator = ParallelCoordinator(str(state), max_parallel_runners=1)
    assert add(coordinator, 1)
    let_go(coordinator)


def test_a_link_to_the_directory_is_the_directory(coordinator, state):
    """Two objects of one process, each by another name of one directory: one registration for both."""
    link = state.with_name("link")
    link.symlink_to(state)
    other = ParallelCoordinator(link)
    add(coordinator, 1)
    other.update_resources("runner-1", files=["a.py"])
    other.unregister_runner("runner-1")
    assert coordinator.get_concurrent_count() == 0


def test_two_objects_in_one_process_see_the_same(coordinator, state):
    """Leases belong to the process, not to the object."""
    add(coordinator, 1)
    other = ParallelCoordinator(state, max_parallel_runners=3)
    other.update_heartbeat("runner-1")
    other.unregister_runner("runner-1")
    assert coordinator.get_concurrent_count() == 0


# ---- one file per runner


def test_one_readable_file_per_runner(coordinator, state):
    """S2-14, S2-41: a flat object with the document's fields, times in UTC."""
    add(coordinator, 1, files=["a.py"], branches=["b"])
    (path,) = (state / "runners").glob("*.json")
    text = path.read_text()
    record = json.loads(text)
    assert text.count("\n") > 8, "cat is the debugger"
    assert record["runner_id"] == "runner-1"
    assert record["task_id"] == "task-1"
    assert record["spec_name"] == "spec"
    assert record["workspace_path"] == "/tmp/workspace1"
    assert (record["files_locked"], record["branches_used"]) == (["a.py"], ["b"])
    for key in ("start_time", "last_heartbeat"):
        assert datetime.fromisoformat(record[key]).utcoffset() == datetime.now(UTC).utcoffset()
    assert {"schema", "pid", "start_ticks", "boot_id", "host", "user", "token"} <= set(record)
    assert RunnerInstance.from_dict(record).to_dict() == record


# ---- spellings of one place


@pytest.mark.parametrize("spelling", ["{}/", "{}/.", "{}/x/..", "{}/nested", "{}/..", "{}-link"])
def test_every_spelling_of_a_workspace_conflicts(coordinator, tmp_path, spelling):
    """S2-02, S2-05: links, dots, nested and enclosing directories."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "place-link").symlink_to(place)
    assert coordinator.register_runner("runner-1", "t", "s", place)
    assert coordinator.try_register("runner-2", "t", "s", spelling.format(place)).reason == "workspace"


@pytest.mark.parametrize(
    "spelling", ["./src/main.py", "src/../src/main.py", "{}/src/main.py", "src", "link.py", "src/"]
)
def test_every_spelling_of_a_file_conflicts(coordinator, tmp_path, spelling):
    """S2-03: dots, absolute paths, links, the directory around it."""
    place = tmp_path / "place"
    (place / "src").mkdir(parents=True)
    (place / "src" / "main.py").touch()
    (place / "link.py").symlink_to("src/main.py")
    other = tmp_path / "other"
    assert coordinator.register_runner("runner-1", "t", "s", other, files=["src/main.py"])
    assert coordinator.register_runner("runner-2", "t", "s", place)
    found = coordinator.detect_conflicts("runner-2", files=[spelling.format(place)])
    assert found == ["File conflict with runner runner-1: src/main.py"]


def test_a_file_outside_the_workspace_is_a_place_on_the_disk(coordinator, tmp_path):
    """Two work spaces that reach the same file outside meet there, however they write it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert coordinator.register_runner("runner-1", "t", "s", tmp_path / "one", files=["../shared.txt"])
    shared = str(tmp_path / "shared.txt")
    assert coordinator.try_register("runner-2", "t", "s", tmp_path / "two", files=[shared]).reason == "file"


def test_a_pattern_outside_the_workspace_stays_one(coordinator, tmp_path):
    """And a name that looks like one is a name."""
    for name in ("one", "two", "else[w]here"):
        (tmp_path / name).mkdir()
    assert coordinator.register_runner("runner-1", "t", "s", tmp_path / "one", files=["../else[w]here/*.py"])
    for path, reason in (("a.py", "file"), ("a.txt", None)):
        there = f"../else[w]here/{path}"
        assert coordinator.try_register("runner-2", "t", "s", tmp_path / "two", files=[there]).reason == reason
    assert coordinator.register_runner("runner-3", "t", "s", tmp_path / "three", files=["../elsewhere/a.py"])


def test_one_name_may_be_given_as_text(coordinator):
    """`files="main.py"` is one file, not seven letters."""
    add(coordinator, 1, files="main.py", branches="fix")
    (record,) = coordinator.get_runners()
    assert (record.files_locked, record.branches_used) == ({"main.py"}, {"fix"})


def test_a_stranger_asks_about_every_repository(coordinator):
    """A runner that is not registered may ask before it has a work space."""
    add(coordinator, 1, files=["main.py"])
    assert coordinator.detect_conflicts("stranger", files=["./main.py"]) == [
        "File conflict with runner runner-1: main.py"
    ]


def test_refusals_over_a_conflict_are_in_the_log(coordinator, caplog):
    """S2-45: whoever only asks for a bool can read why it was False; a limit is no conflict."""
    assert add(coordinator, 1, files=["main.py"], branches=["fix"])
    assert not coordinator.register_runner("runner-2", "t", "s", "/tmp/workspace1")
    assert not add(coordinator, 3, branches=["fix"])
    assert not add(coordinator, 4, files=["main.py"])
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for line, reason in zip(told, ("workspace", "branch", "file"), strict=True):
        assert f"was refused ({reason})" in line and "runner-1" in line
    assert add(coordinator, 5) and add(coordinator, 6)
    assert not add(coordinator, 7)
    assert len(caplog.records) == 3


def test_conflicts_are_warned_about_and_recorded(coordinator, state, caplog):
    """S2-19, S2-45: a warning in the log and one event."""
    add(coordinator, 1, files=["main.py"])
    add(coordinator, 2)
    coordinator.detect_conflicts("runner-2", files=["main.py"])
    assert "File conflict with runner runner-1: main.py" in caplog.text
    lines = [json.loads(line) for path in (state / "events").iterdir() for line in path.read_text().split("\n") if line]
    (event,) = [line for line in lines if line["kind"] == "conflict.found"]
    assert (event["runner_id"], event["blockers"]) == ("runner-2", ["runner-1"])


class Listings:
    """How many folders this thread lists, told by the interpreter; a hook stays for the life of the process."""

    def __init__(self) -> None:
        self.seen, self._thread, self._on = 0, threading.get_ident(), True
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _: object) -> None:
        self.seen += self._on and event in ("os.listdir", "os.scandir") and threading.get_ident() == self._thread

    def stop(self) -> None:
        self._on = False


def test_the_state_is_kept_in_memory_and_what_others_change_is_seen(coordinator, state):
    """S2-55: a process in step lists no folder, and still sees at once what another process has done."""
    add(coordinator, 1)
    with runners(1, state, max_parallel_runners=3) as (other,):
        listings, began = Listings(), time.monotonic()
        for number in range(2, 22):
            assert add(coordinator, number)
            coordinator.unregister_runner(f"runner-{number}")
        listings.stop()
        seconds = int(time.monotonic() - began) + 2
        assert listings.seen <= 3 * seconds  # once in a second the three folders are compared with what is known
        assert other.call("register_runner", "theirs", "t", "s", "/tmp/theirs")
        assert coordinator.get_concurrent_count() == 2
        assert add(coordinator, 2) and not add(coordinator, 3)
