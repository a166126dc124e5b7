"""necrocode status and config: what stands in the state directory, readable on any screen, without touching it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actors import Puppet
from cli_call import Cli, calls, until

from necrocode import journal
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as made:
        yield made


@pytest.fixture
def ledger(state_root: Path) -> FileLedger:
    return FileLedger(state_root)


def fleet_like(number: int, **options: object) -> Request:
    """What a runner of a run asks for."""
    task = f"task-of-some-length-{number}"
    claims = (
        Claim.file(f"src/m{number}.py", "r"), Claim.file("tests/**", "r", shared=True),
        Claim.workspace(f"/home/me/api.worktrees/k7m2p4-{task}"), Claim.branch(f"necrocode/k7m2p4/{task}", "r"),
    )  # fmt: skip
    details = {"branch": f"necrocode/k7m2p4/{task}", "run_id": "k7m2p4"}
    return Request(
        f"k7m2p4.{task}.1", claims, task, "api", f"/home/me/api.worktrees/k7m2p4-{task}", details=details, **options
    )  # type: ignore[arg-type]


def test_no_state_and_an_empty_one(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    assert "nothing has ever run there" in cli("status", "--state-dir", str(tmp_path / "none")).stdout
    empty = cli.json("status")
    assert (empty["exists"], empty["live"], empty["runners"], empty["consistent"]) == (True, 0, [], True)
    assert "no runners   0 waiting" in cli("status").stdout


def test_runners_and_waiters_as_one_document(cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet]) -> None:
    lease = ledger.register(fleet_like(1))
    ledger.configure(limit=3, quotas={"spec:api": 2})
    for number, name in enumerate(("first", "second")):
        puppet().begin("register", Request(name, (Claim.file("src/m1.py", "r"),), "t", priority=-number), wait=True)
        until(lambda number=number: len(ledger.snapshot().waiting) == number + 1)  # type: ignore[misc]
    seen = cli.json("status")
    assert (seen["limit"], seen["quotas"], seen["live"], seen["consistent"]) == (3, {"spec:api": 2}, 1, True)
    [runner] = seen["runners"]
    assert (runner["runner_id"], runner["pid"], runner["token"]) == (lease.runner_id, os.getpid(), lease.token)
    assert (runner["task_id"], runner["spec_name"], runner["liveness"]) == (lease.record.task_id, "api", "alive")
    assert "file:src/m1.py" in runner["claims"] and 0 <= runner["silent_seconds"] < 60
    first, second = seen["waiting"]
    assert (first["runner_id"], first["position"], first["reason"]) == ("first", 1, "file")
    assert first["blockers"][0]["runner_id"] == lease.runner_id and first["blockers"][0]["since"]
    assert (second["runner_id"], second["position"]) == ("second", 2)


@pytest.mark.parametrize("count", [1, 8, 60])
@pytest.mark.parametrize("width", [80, 200])
def test_it_fits_any_screen_and_hides_nobody(
    cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet], count: int, width: int
) -> None:
    for number in range(count):
        ledger.register(fleet_like(number))
    dead = puppet()
    dead.do("register", Request("the-dead-one", (Claim.parse("gpu:0"),)))
    dead.kill()
    lines = cli("status", COLUMNS=str(width)).stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "1 unwell" in lines[0] and lines[1].startswith("! the-dead-one is dead") and "necrocode gc" in lines[1]
    head = next(line for line in lines if line.startswith("RUNNER"))
    assert all(word in head for word in ("BEAT", "AGE", "HOLDS"))
    assert ("WORKSPACE" in head and "BRANCH" in head) is (width == 200)
    rows = lines[lines.index(head) + 1 :]
    assert rows[0].startswith("the-dead-one") and "dead!" in rows[0]
    for number in range(count):
        assert any(row.split("  ")[0].endswith(f"-{number}.1") for row in rows)


def test_the_fenced_and_the_silent_are_marked(cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet]) -> None:
    ledger.register(Request("fenced-one"))
    ledger.fence("fenced-one")
    silent = puppet()
    silent.do("register", Request("silent-one", heartbeat_timeout=0.2))
    until(lambda: any(seen.liveness == "silent" for seen in ledger.snapshot().runners))
    seen = cli.json("status")
    states = {runner["runner_id"]: (runner["state"], runner["liveness"]) for runner in seen["runners"]}
    assert states == {"fenced-one": ("fenced", "alive"), "silent-one": ("running", "silent")}
    shown = cli("status").stdout
    assert "! fenced-one is fenced but alive: necrocode stop fenced-one" in shown
    assert "! silent-one gave no heartbeat for" in shown
    assert seen == seen | {"live": 0}


def test_a_record_that_cannot_be_read_hides_nobody_else(cli: Cli, ledger: FileLedger, state_root: Path) -> None:
    ledger.register(Request("good"))
    (state_root / "runners" / "bad.7.0.json").write_text("{")
    seen = cli.json("status")
    assert [runner["runner_id"] for runner in seen["runners"]] == ["good"]
    assert seen["unreadable"] == ["runners/bad.7.0.json"]
    assert "! runners/bad.7.0.json cannot be read: necrocode doctor" in cli("status").stdout


def test_names_cannot_reach_the_terminal(cli: Cli, ledger: FileLedger) -> None:
    ledger.register(Request("r", (Claim("gpu", "\x1b[2Jx"),), "task\x1b]0;x\x07", details={"branch": "b\rc"}))
    shown = cli("status").stdout
    assert "\x1b" not in shown and "\r" not in shown and "\x07" not in shown


def test_it_neither_waits_for_the_gate_nor_pretends(cli: Cli, ledger: FileLedger) -> None:
    ledger.register(Request("r"))
    with ledger._gate("test"):
        seen = cli.json("status")
        assert "not one moment" in cli("status").stdout
    assert seen["consistent"] is False and seen["runners"]


def test_ends_and_conflicts_of_late(cli: Cli, ledger: FileLedger, state_root: Path) -> None:
    told = [
        journal.make("attempt.finished", task_id="old", run_id="k7", status="done", seconds=1.0)._replace(at=1.0),
        journal.make("attempt.finished", task_id="a", run_id="k7", status="done", seconds=12.0, attempt=1),
        journal.make("attempt.finished", task_id="b", run_id="k7", status="failed", seconds=1.0, error="sh: 3"),
        journal.make("lease.queued", runner_id="b1", reason="limit", blockers=["x"], claims=[]),
        journal.make("lease.queued", runner_id="b2", reason="file", blockers=["a1"], claims=["file:x.py"]),
        journal.make("conflict.avoided", task_id="c", run_id="k7", after="a", claims=["file:y.py"]),
    ]
    journal.append(state_root / "events", told)
    shown = cli("status").stdout.partition("\n")[2]  # without the directory, whose name is random
    assert [line.split()[:2] for line in shown.splitlines() if "k7" in line] == [["b", "failed"], ["a", "done"]]
    assert "b2 had to wait for file:x.py: a1 had it" in shown and "c goes after a" in shown and "b1" not in shown
    assert len(cli.json("status")["finished"]) == 2


def test_watching_without_a_terminal_is_one_line_for_each_change(cli: Cli, ledger: FileLedger) -> None:
    process = cli.start("status", "--watch", "--json")
    assert process.stdout
    assert json.loads(process.stdout.readline())["runners"] == []
    lease = ledger.register(Request("r"))
    assert [one["runner_id"] for one in json.loads(process.stdout.readline())["runners"]] == ["r"]
    ledger.release(lease)
    while json.loads(process.stdout.readline())["runners"]:
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_the_dashboard_on_a_terminal_keeps_to_the_screen(cli: Cli, ledger: FileLedger) -> None:
    for number in range(30):
        ledger.register(fleet_like(number))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cli.where)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))  # before anybody looks
        argv = [sys.executable, "-m", "necrocode", "status", "--watch"]
        os.execve(sys.executable, argv, cli.environment(TERM="xterm"))
    try:
        said = _until_said(terminal, b"Nothing to clean")
        os.write(terminal, b"\x03")
        said += _until_said(terminal, b"\x1b[?1049l")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    screen = said.partition(b"Nothing to clean")[0].decode()
    assert "30 runners" in screen and "more" in screen and screen.count("\n") < 20
    assert os.waitstatus_to_exitcode(status) == 130 and b"Traceback" not in said


def _until_said(terminal: int, word: bytes) -> bytes:
    text, end = b"", time.monotonic() + 30
    while word not in text:
        assert time.monotonic() < end, text
        text += os.read(terminal, 65536)
    return text


def test_settings_are_shown_changed_and_hold_at_once(
    cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet]
) -> None:
    assert cli("config").stdout == "limit none\n"
    assert cli("config", "set", "limit", "1").stdout == "limit 1\n"
    ledger.register(Request("holder"))
    late = puppet()
    late.begin("register", Request("late"), wait=True)
    until(lambda: ledger.snapshot().waiting)
    assert cli("config", "set", "limit", "2").returncode == 0
    assert late.result().runner_id == "late"
    cli("config", "set", "quota", "spec:api", "2")
    cli("config", "set", "quota", "user:ada", "3")
    cli("config", "set", "quota", "spec:api", "none")
    cli("config", "set", "limit", "none")
    shown = cli.json("config")
    assert (shown["limit"], shown["quotas"]) == (None, {"user:ada": 3})
    assert cli("config", "set", "quota", "everybody", "3").returncode == 2
