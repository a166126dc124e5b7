"""necrocode events: all of them, some of them, and those that come."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import ROOT, Cli, calls, until

from necrocode import journal
from necrocode.event import KINDS, Event
from necrocode.statedir import StateDir


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as cli:
        yield cli


def tell(cli: Cli, kind: str, ago: float = 0.0, **whom: str) -> None:
    event = Event(kind, time.time() - ago, time.monotonic() - ago, **whom)
    journal.append(StateDir(cli.state).events, [event])


def kinds(text: str) -> list[str]:
    return [json.loads(line)["kind"] for line in text.splitlines()]


def test_each_event_is_a_line_of_json(cli: Cli) -> None:
    tell(cli, "run.started", run_id="r1")
    tell(cli, "lease.granted", runner_id="r1.parse.1")
    assert kinds(cli("events").stdout) == ["run.started", "lease.granted"]
    assert kinds(cli("events", "--json").stdout) == ["run.started", "lease.granted"]


def test_nothing_is_made_where_nothing_is(cli: Cli, tmp_path: Path) -> None:
    done = cli("events", "--state-dir", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (0, "")
    assert not (tmp_path / "none").exists()


def test_they_are_chosen_by_time_run_task_and_kind(cli: Cli) -> None:
    tell(cli, "run.started", 7200, run_id="r1")
    tell(cli, "task.queued", 60, run_id="r1", task_id="parse")
    tell(cli, "lease.granted", 50, runner_id="r1.parse.1")
    tell(cli, "lease.granted", 40, runner_id="r2.parse.1")
    tell(cli, "lease.granted", 30, runner_id="exec-1")
    assert len(kinds(cli("events", "--since", "10m").stdout)) == 4
    assert len(kinds(cli("events", "--since", "3h").stdout)) == 5
    assert kinds(cli("events", "--run", "r1").stdout) == ["run.started", "task.queued", "lease.granted"]
    assert kinds(cli("events", "--task", "parse").stdout) == ["task.queued", "lease.granted", "lease.granted"]
    assert kinds(cli("events", "--task", "r1/parse").stdout) == ["task.queued", "lease.granted"]
    assert kinds(cli("events", "--kind", "run", "--kind", "task.queued").stdout) == ["run.started", "task.queued"]
    assert kinds(cli("events", "--since", "2020-01-01T10:00").stdout) == kinds(cli("events").stdout)


@pytest.mark.parametrize("args", [["--since", "soon"], ["--since", "10 parsecs"], ["--kind", "lease.grantd"]])
def test_what_cannot_be_meant_is_a_mistake(cli: Cli, args: list[str]) -> None:
    wrong = cli("events", *args)
    assert wrong.returncode == 2 and "hint" in wrong.stderr


def test_followed_events_come_as_they_happen_after_those_that_were(cli: Cli) -> None:
    tell(cli, "run.started", 7200, run_id="old")
    tell(cli, "run.started", 60, run_id="new")
    follower = cli.start("events", "-f", "--since", "10m")
    assert follower.stdout
    assert json.loads(follower.stdout.readline())["run_id"] == "new"
    tell(cli, "run.finished", run_id="new")
    assert json.loads(follower.stdout.readline())["kind"] == "run.finished"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(30) == 130


def test_a_reader_that_goes_ends_it_quietly(cli: Cli) -> None:
    for _ in range(3000):
        tell(cli, "run.started", run_id="r")
    script = f"{sys.executable} -m necrocode events | head -1"
    done = subprocess.run(
        ["bash", "-c", script], env=cli.environment(), cwd=cli.where, capture_output=True, text=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


def test_on_a_terminal_they_are_lines_for_a_person(cli: Cli) -> None:
    journal.append(
        StateDir(cli.state).events,
        [journal.make("attempt.finished", run_id="r1", task_id="parse", status="failed", error="bad\x1b[31m\nnews")],
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "necrocode", "events"], stdout=follower, env=cli.environment(TERM="xterm"), cwd=cli.where
    )
    os.close(follower)
    shown = until(lambda: os.read(leader, 4096)).decode()
    assert process.wait(30) == 0
    os.close(leader)
    assert re.match(r"\d\d:\d\d:\d\d  r1/parse +attempt.finished  status failed, error bad\?\[31m\?news", shown), shown


def test_the_page_names_every_kind() -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    assert re.findall(r"^\| `([a-z.]+)`", page, re.MULTILINE) == list(KINDS)
