"""S4, what is told: events, the bus, history and replay, metrics, and the printers."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from loops import on_loop, until

import necrocode
from necrocode.parallel import (
    BaseActor,
    ErrorStrategy,
    EventBus,
    EventPrinter,
    EventType,
    ExecutionEvent,
    ExecutionState,
    ExecutionStatus,
    GroupStatus,
    HistorySet,
    ParallelDisplayMode,
    ParallelEventPrinter,
)

STARTED, COMPLETED, FAILED = ExecutionStatus.STARTED, ExecutionStatus.COMPLETED, ExecutionStatus.FAILED


async def double(n, seconds=0.0):
    await asyncio.sleep(seconds)
    return n * 2


async def fail(text="boom"):
    raise ValueError(text)


def heard(state):
    events = []
    state.event_bus.subscribe(events.append)
    return events


# ---- events


def test_s4_03_defaults_of_the_three_fields():
    event = ExecutionEvent(actor="a")
    assert (event.group_id, event.parallel_index, event.is_parallel) == (None, None, False)
    assert ExecutionEvent.model_validate_json(event.model_dump_json()) == event


@on_loop
async def test_s4_18_and_19_events_of_a_group():
    state = ExecutionState()
    events = heard(state)
    async with state.parallel(name="g") as p:
        p.add(double(1), name="good")
        p.add(fail(), name="bad")
        await p.gather()
    told = [(event.event_type, event.execution_status, event.name, event.parallel_index) for event in events]
    assert told[0] == (EventType.GROUP_STARTED, STARTED, "g", None)
    assert told[-1] == (EventType.GROUP_COMPLETED, COMPLETED, "g", None)
    members = told[1:-1]
    assert (EventType.TASK, STARTED, "good", 0) in members and (EventType.TASK, COMPLETED, "good", 0) in members
    assert (EventType.TASK, FAILED, "bad", 1) in members and len(members) == 4
    assert {event.group_id for event in events} == {p.group.group_id}
    assert [event.is_parallel for event in events] == [False, *[True] * 4, False]
    assert all(event.total == 2 for event in events) and events[-1].execution_time > 0
    (good,) = [event for event in events if event.name == "good" and event.execution_status is COMPLETED]
    assert good.result == 2 and good.address == "g/good"


@on_loop
async def test_s4_19_groups_that_do_not_run_to_their_end():
    state = ExecutionState()
    events = heard(state)
    async with state.parallel(error_strategy=ErrorStrategy.FAIL_FAST) as p:
        p.add(fail())
        with pytest.raises(ValueError):
            await p.gather()
    assert (events[-1].event_type, events[-1].execution_status) == (EventType.GROUP_FAILED, FAILED)
    assert "boom" in events[-1].message
    with pytest.raises(KeyError):
        async with state.parallel() as p:
            p.add(double(1))
            raise KeyError
    assert (events[-1].event_type, events[-1].execution_status) == (EventType.GROUP_FAILED, ExecutionStatus.CANCELLED)


@on_loop
async def test_retries_are_told():
    state, tries = ExecutionState(), []
    events = heard(state)

    async def flaky():
        tries.append(1)
        if len(tries) < 2:
            raise OSError("again")

    async with state.parallel(max_retries=1, retry_delay=0) as p:
        p.add(flaky)
    statuses = [event.execution_status for event in events if event.is_parallel]
    assert statuses == [STARTED, ExecutionStatus.RETRYING, STARTED, COMPLETED]


@on_loop
async def test_s4_28_sync_and_async_subscribers_hear_all_in_order():
    state, seen = ExecutionState(), {"sync": [], "async": [], "slow": []}

    async def listen(event):
        seen["async"].append(event)

    async def slow(event):
        await asyncio.sleep(0.001)
        seen["slow"].append(event)

    state.event_bus.subscribe(lambda event: seen["sync"].append(event))
    state.event_bus.subscribe(listen)
    state.event_bus.subscribe(slow)
    async with state.parallel() as p:
        for n in range(10):
            p.add(double(n))
    assert len(seen["sync"]) == 22 and seen["sync"] == seen["async"] == seen["slow"]


@on_loop
async def test_a_subscriber_that_raises_does_no_harm(caplog):
    state, seen = ExecutionState(), []

    def broken(event):
        raise RuntimeError("broken subscriber")

    state.event_bus.subscribe(broken)
    state.event_bus.subscribe(seen.append)
    with caplog.at_level(logging.WARNING):
        async with state.parallel() as p:
            p.add(double(1))
            assert (await p.gather())[0].ok
    assert len(seen) == 4 and "broken subscriber" in caplog.text
    state.event_bus.unsubscribe(broken)
    with pytest.raises(TypeError):
        state.event_bus.subscribe("no function")


@on_loop
async def test_a_subscriber_that_never_ends_is_cancelled(caplog):
    bus, ended = EventBus(), []

    async def hang(event):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    bus.subscribe(hang)
    bus.tell(ExecutionEvent(actor="a"))
    await bus.settled(0.05)
    await until(lambda: ended)
    assert "not done" in caplog.text


@on_loop
async def test_a_stream_of_events():
    state, seen = ExecutionState(), []

    async def listen():
        async for event in state.event_bus.stream():
            seen.append(event.event_type)

    listener = asyncio.create_task(listen())
    await until(lambda: state.event_bus.is_heard)
    async with state.parallel() as p:
        p.add(double(1))
    state.event_bus.close()
    await listener
    assert seen == [EventType.GROUP_STARTED, EventType.TASK, EventType.TASK, EventType.GROUP_COMPLETED]
    assert not state.event_bus.is_heard


@on_loop
async def test_s4_25_and_34_actors_outside_of_groups():
    state = ExecutionState()
    events = heard(state)
    actor = BaseActor(name="adder", handler=lambda data, extra, state: data + 1, event_type=EventType.TOOL_CALL)
    result = await ExecutionEvent(actor=actor)(1, None, state)
    assert (result.ok, result.result) == (True, 2)
    assert [event.execution_status for event in events] == [STARTED, COMPLETED]
    assert not any(event.is_parallel for event in events) and events[0].event_type is EventType.TOOL_CALL

    async def bad(data, extra, state):
        raise ValueError("boom")

    with pytest.raises(ValueError):
        await ExecutionEvent(actor=BaseActor(name="bad", handler=bad))(None, None, state)
    await state.event_bus.settled()
    assert events[-1].execution_status is FAILED and "boom" in events[-1].message
    with pytest.raises(TypeError):
        await ExecutionEvent(actor="only a name")()
    assert [entry.address for entry in state.history] == ["adder", "bad"]


def test_s4_26_actors_that_finished_are_not_run_again():
    """Also told as replayed, on the bus and by the printer; one that was cancelled is run again."""
    ran, shown = [], io.StringIO()

    async def work(data, extra, state):
        ran.append(data)
        await asyncio.sleep(3600 if data == "long" and len(ran) == 2 else 0)
        return data

    async def program(state, *, interrupted):
        state.event_bus.subscribe(EventPrinter(show_timestamp=False, stream=shown))
        first = await ExecutionEvent(actor=BaseActor(name="first", handler=work))("quick", None, state)
        doing = asyncio.ensure_future(ExecutionEvent(actor=BaseActor(name="second", handler=work))("long", None, state))
        if interrupted:
            await until(lambda: len(ran) == 2)
            doing.cancel()
        await asyncio.wait([doing])
        await state.event_bus.settled()
        return first

    state = ExecutionState()
    assert not asyncio.run(program(state, interrupted=True)).is_replayed
    assert [entry.status for entry in state.history] == [COMPLETED, ExecutionStatus.CANCELLED]
    restored = ExecutionState.model_validate_json(state.model_dump_json())
    first = asyncio.run(program(restored, interrupted=False))
    assert (first.result, first.is_replayed, first.attempts) == ("quick", True, 1)
    assert ran == ["quick", "long", "long"]
    assert "cancelled second" in shown.getvalue() and re.search(r"completed first .*\(replayed\)", shown.getvalue())


@on_loop
async def test_s4_35_actors_inside_of_groups_have_their_members_addresses():
    state = ExecutionState()
    events = heard(state)
    actor = BaseActor(name="act", handler=lambda data, extra, state: data)

    async def member(n):
        return (await ExecutionEvent(actor=actor)(n, None, state)).result

    async with state.parallel(name="g") as p:
        for n in range(3):
            p.add(member(n))
        assert [result.result for result in await p.gather()] == [0, 1, 2]
    acts = {event.address for event in events if event.name == "act"}
    assert acts == {"g/0/act", "g/1/act", "g/2/act"}


# ---- history, replay, metrics


@on_loop
async def test_s4_27_every_member_has_its_own_entry():
    state = ExecutionState()
    async with state.parallel(name="g") as p:
        p.add(double(1), name="good")
        p.add(fail(), name="bad")
    entries = {entry.address: entry for entry in state.history}
    assert set(entries) == {"g/good", "g/bad"} and len(state.history) == 2
    assert entries["g/good"].result == 2 and entries["g/bad"].error == "ValueError: boom"
    assert entries["g/bad"].parallel_index == 1 and entries["g/bad"].group_id == p.group.group_id
    assert [entry.status for entry in state.history.of("g/good")] == [COMPLETED]


async def pipeline(state, ran, broken=()):
    """A program with groups in groups, as one would run it again after a crash."""

    async def leaf(name):
        ran.append(name)
        if name in broken:
            raise RuntimeError(name)
        return {"name": name, "size": len(name)}

    async def branch(name):
        async with state.parallel(name="inner") as p:
            p.add(leaf(f"{name}.left"), name="left")
            p.add(leaf(f"{name}.right"), name="right")
            results = await p.gather()
        if not all(result.ok for result in results):
            raise RuntimeError(f"{name} is not whole")
        return [result.result["name"] for result in results]

    async with state.parallel(name="outer") as p:
        for name in ("a", "b"):
            p.add(branch(name), name=name)
        return await p.gather_dict()


def test_s4_26_finished_members_are_not_run_again():
    ran, again, third = [], [], []
    first = ExecutionState()
    results = asyncio.run(pipeline(first, ran, broken={"b.right"}))
    assert sorted(ran) == ["a.left", "a.right", "b.left", "b.right"] and not results["b"].ok
    second = ExecutionState.model_validate_json(first.model_dump_json())
    events = heard(second)
    results = asyncio.run(pipeline(second, again))
    assert again == ["b.right"]
    assert results["a"].is_replayed and results["a"].result == ["a.left", "a.right"] and not results["b"].is_replayed
    assert results["b"].result == ["b.left", "b.right"]
    replayed = {event.address for event in events if event.is_replayed and event.from_cache}
    assert replayed == {"outer/a", "outer/b/inner/left"}
    results = asyncio.run(pipeline(ExecutionState.model_validate_json(second.model_dump_json()), third))
    assert third == [] and results["b"].is_replayed


def test_s4_26_the_group_itself_tells_what_was_replayed():
    async def run(state):
        async with state.parallel(name="g") as p:
            p.add(double(1), name="a")
            p.add(double(2), name="b")
            await p.gather()
        return p.group

    state = ExecutionState()
    asyncio.run(run(state))
    group = asyncio.run(run(ExecutionState.model_validate_json(state.model_dump_json())))
    assert (group.total, group.completed, group.replayed, group.status) == (2, 2, 2, GroupStatus.COMPLETED)


def test_results_that_cannot_be_stored_are_run_again():
    async def run(state, ran):
        async def odd():
            ran.append(1)
            return {"set": {1, 2}, "object": object()}

        async with state.parallel() as p:
            p.add(odd())
            return (await p.gather())[0].ok

    state, ran = ExecutionState(), []
    assert asyncio.run(run(state, ran))
    text = state.model_dump_json()
    assert not json.loads(text)["history"]["entries"][0]["storable"]
    assert asyncio.run(run(ExecutionState.model_validate_json(text), ran)) and len(ran) == 2


def test_live_groups_of_one_name_do_not_replay_each_other():
    async def run(state):
        ran = []
        for _ in range(2):
            async with state.parallel(name="same") as p:
                p.add(lambda: ran.append(1))
        return len(ran)

    state = ExecutionState()
    assert asyncio.run(run(state)) == 2
    assert asyncio.run(run(ExecutionState.model_validate_json(state.model_dump_json()))) == 0
    assert len(HistorySet(entries=list(state.history))) == 2


@on_loop
async def test_s4_29_metrics_of_a_group():
    state, tries = ExecutionState(), []

    async def flaky():
        tries.append(1)
        if len(tries) < 3:
            raise OSError

    async with state.parallel(max_retries=2, retry_delay=0) as p:
        p.add(flaky)
        p.add(fail)
        await p.gather()
    async with state.parallel() as other:
        other.add(double(1))
    figures = p.metrics().total
    assert figures.attempts == {"done": 1, "failed": 1} and figures.retries == 4
    assert state.metrics().total.attempts == {"done": 2, "failed": 1}
    assert set(state.metrics().runs) == {p.group.group_id, other.group.group_id}


# ---- printers


def member(index, status, **more):
    return ExecutionEvent(
        actor=f"t{index}", group_id="g", parallel_index=index, is_parallel=True, execution_status=status, **more
    )


def test_s4_20_a_printer_counts_events_made_by_hand():
    printer = ParallelEventPrinter(parallel_mode="realtime", show_progress=True, stream=io.StringIO())
    for index in range(3):
        printer.print_event(member(index, STARTED))
        printer.print_event(member(index, COMPLETED))
    tracker = printer.parallel_groups["g"]
    assert (tracker.completed, tracker.started, tracker.total, tracker.is_complete) == (3, 3, 3, True)
    assert isinstance(printer, EventPrinter)


@pytest.mark.parametrize(
    ("completed", "total", "bar"),
    [(8, 10, "████████▒▒ 80%"), (0, 10, "▒▒▒▒▒▒▒▒▒▒ 0%"), (10, 10, "██████████ 100%"), (1, 3, "███▒▒▒▒▒▒▒ 33%"),
     (0, 0, "██████████ 100%"), (12, 10, "██████████ 100%")],
)  # fmt: skip
def test_s4_22_the_bar(completed, total, bar):
    printer = ParallelEventPrinter(stream=io.StringIO())
    assert printer._render_progress_bar(completed, total) == bar


def test_s4_20_arguments_of_the_printer():
    """By name as in the document; a mode where a switch belongs is refused, not ignored."""
    printer = ParallelEventPrinter(parallel_mode="progress", show_progress=False)
    assert printer.parallel_mode is ParallelDisplayMode.PROGRESS and not printer.show_progress
    with pytest.raises(ValueError, match="show_timestamp 'progress'"):
        ParallelEventPrinter("progress", False)


def test_s4_22_the_width_of_the_bar():
    assert ParallelEventPrinter(stream=io.StringIO())._render_progress_bar(1, 2, width=4) == "██▒▒ 50%"


def printed(parallel_mode, **options):
    """What a printer off the terminal writes for a group with one failure, and for an event beside it."""
    out = io.StringIO()

    async def run():
        state = ExecutionState()
        state.event_bus.subscribe(ParallelEventPrinter(parallel_mode=parallel_mode, stream=out, **options))
        await state.event_bus.publish(ExecutionEvent(actor="single", address="single"))
        async with state.parallel(name="group", max_workers=1) as p:
            p.add(double(1), name="one")
            p.add(fail("went\x1b[31m wrong"), name="two")

    asyncio.run(run())
    return out.getvalue()


def test_s4_21_realtime_lines_have_group_number_and_error():
    text = printed("realtime")
    assert "[group] started, 2 members" in text
    assert re.search(r"\[group#0\] \d\d:\d\d:\d\d completed one  group/one  0\.\d\d s", text)
    assert re.search(r"\[group#1\].* failed    two .*ValueError: went wrong", text)
    assert "\x1b" not in text


def test_s4_24_statistics_at_the_end():
    assert re.search(r"\[group\] completed: 1 of 2 completed, 1 failed, 0\.\d\d s", printed("realtime"))
    assert re.search(r"\[group\] completed: 1 of 2 completed, 1 failed, 0\.\d\d s", printed("progress"))


def test_s4_23_and_33_progress_off_a_terminal_is_plain_lines():
    text = printed(ParallelDisplayMode.PROGRESS)
    assert "group  █████▒▒▒▒▒ 50%  1/2\n" in text and "group  ██████████ 100%  2/2  1 failed\n" in text
    assert "\x1b" not in text and "\r" not in text and "ValueError: went wrong" in text
    assert "%" not in printed("progress", show_progress=False)
    with pytest.raises(ValueError):
        ParallelEventPrinter(parallel_mode="sideways")


def test_s4_25_other_events_look_the_same_in_both_printers():
    event, lines = ExecutionEvent(actor="single", address="here/single"), []
    for kind in (EventPrinter, ParallelEventPrinter):
        out = io.StringIO()
        kind(stream=out).print_event(event)
        lines.append(out.getvalue())
    assert lines[0] == lines[1] and "single  here/single" in lines[0]
    out = io.StringIO()
    EventPrinter(False, False, stream=out)(event)
    assert out.getvalue() == "started   single\n"


def test_15_regular_and_parallel_events_make_one_group():
    printer = ParallelEventPrinter(stream=io.StringIO())
    for event in (ExecutionEvent(actor="regular"), member(0, STARTED), ExecutionEvent(actor="other", group_id="g")):
        printer.print_event(event)
    assert list(printer.parallel_groups) == ["g"] and printer.parallel_groups["g"].started == 1


SHOW = """
import asyncio
from necrocode.parallel import ExecutionState, ParallelEventPrinter

async def main():
    state = ExecutionState()
    state.event_bus.subscribe(ParallelEventPrinter(parallel_mode="progress"))
    async with state.parallel(name="shown", max_workers=1) as p:
        for n in range(4):
            p.add(asyncio.sleep(0.01, n))
        p.add(lambda: 1 / 0)

asyncio.run(main())
"""


def on_terminal(**more):
    """What a program writes to a real terminal of 60 columns."""
    ours, theirs = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    env = {**kept, "PYTHONPATH": str(Path(necrocode.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "60", **more}
    program = subprocess.Popen([sys.executable, "-c", SHOW], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    data = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break  # the other side is closed
            if not piece:
                break
            data += piece
    finally:
        program.kill()
        program.wait()
        os.close(ours)
    return data.decode()


def test_s4_23_progress_on_a_terminal_is_in_place():
    text = on_terminal()
    assert "20%" in text and "100%" not in text.split("completed:")[-1]
    assert "\r\x1b[2K" in text  # the line is written anew
    assert re.search(r"4 of 5 completed, 1 failed", re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert "\x1b[31m" in text


def test_s4_23_no_color_is_honoured():
    text = on_terminal(NO_COLOR="1")
    assert "\x1b[31m" not in text and "20%" in text
