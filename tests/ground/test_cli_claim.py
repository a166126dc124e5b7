"""necrocode claim and release: what a script holds is held while the script lives, and not a moment longer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import Cli, calls, kill, until

from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.testing import check, is_alive


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as cli:
        yield cli
        for runner in FileLedger(state_root).snapshot().runners:
            if runner.record.holder and runner.record.details.get("kind") == "claim":
                kill(runner.record.holder.pid)


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody to hold something for."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def held(cli: Cli) -> dict[str, list[str]]:
    runners = FileLedger(cli.state).snapshot().runners
    return {one.record.runner_id: [str(claim) for claim in one.record.claims] for one in runners}


def live(cli: Cli) -> set[str]:
    return {one.record.runner_id for one in FileLedger(cli.state).snapshot().runners if one.liveness == "alive"}


def shell(cli: Cli, script: str, program: str = "sh", **more: object) -> subprocess.Popen[str]:
    shim = cli.where / "bin" / "necrocode"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m necrocode "$@"\n')
    shim.chmod(0o755)
    env = cli.environment(PATH=f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([program, "-c", script], cwd=cli.where, env=env, text=True, **{**pipes, **more})
    cli.started.append(process)
    return process


def test_a_claim_is_held_after_the_command_returned_and_until_it_is_released(cli: Cli, owner) -> None:
    got = cli("claim", "--pid", str(owner.pid), "file:a.txt", "port:8080")
    assert got.returncode == 0, got.stderr
    name = got.stdout.strip()
    assert list(held(cli)) == [name]
    assert any("8080" in claim for claim in held(cli)[name])
    assert cli("exec", "--file", "a.txt", "--no-wait", "--", "true").returncode == 75
    assert cli("release", name).returncode == 0
    assert held(cli) == {}
    assert cli("exec", "--file", "a.txt", "--no-wait", "--", "true").returncode == 0
    check(cli.state)


def test_the_lease_ends_when_its_process_is_killed(cli: Cli, owner) -> None:
    told = cli.json("claim", "--pid", str(owner.pid), "gpu:0")
    assert told["for_pid"] == owner.pid and is_alive(told["pid"])
    owner.kill()
    until(lambda: not is_alive(told["pid"]))
    assert held(cli) == {}


def test_the_lease_ends_when_its_holder_is_killed(cli: Cli, owner) -> None:
    told = cli.json("claim", "--pid", str(owner.pid), "gpu:0")
    kill(told["pid"])
    until(lambda: not live(cli))
    assert cli("claim", "--pid", str(owner.pid), "--no-wait", "gpu:0").returncode == 0


def test_held_is_75_and_names_the_holder(cli: Cli, owner) -> None:
    first = cli.json("claim", "--pid", str(owner.pid), "gpu:0", "--name", "first")
    second = cli("claim", "--pid", str(owner.pid), "--no-wait", "gpu:0", "gpu:1")
    assert second.returncode == 75 and "first" in second.stderr and second.stdout == ""
    assert list(held(cli)) == [first["runner_id"]]  # nothing of it: gpu:1 is free
    error = cli.json("claim", "--pid", str(owner.pid), "--no-wait", "gpu:0")["error"]
    assert error["exit_code"] == 75 and error["blockers"][0]["runner_id"] == "first"


def test_a_wait_is_told_served_when_it_is_free_and_124_after_its_time(cli: Cli, owner) -> None:
    cli.json("claim", "--pid", str(owner.pid), "gpu:0", "--name", "first")
    late = cli("claim", "--pid", str(owner.pid), "--timeout", "0.3", "gpu:0")
    assert late.returncode == 124 and "waiting" in late.stderr
    waiter = cli.start("claim", "--pid", str(owner.pid), "gpu:0", "--name", "second")
    until(lambda: FileLedger(cli.state).snapshot().waiting)
    cli("release", "first")
    assert waiter.wait(30) == 0
    assert list(held(cli)) == ["second"]


def test_shared_claims_stand_beside_each_other(cli: Cli, owner) -> None:
    for _ in range(2):
        assert cli("claim", "--pid", str(owner.pid), "--no-wait", "shared:dataset:x").returncode == 0
    assert cli("claim", "--pid", str(owner.pid), "--no-wait", "dataset:x").returncode == 75
    assert cli("release", "--pid", str(owner.pid)).returncode == 0
    assert held(cli) == {}


def test_a_wait_ends_with_the_process_it_is_for(cli: Cli, owner) -> None:
    FileLedger(cli.state).register(Request("me", (Claim.parse("gpu:0"),)))
    other = subprocess.Popen(["sleep", "300"])
    waiter = cli.start("claim", "--pid", str(other.pid), "gpu:0")
    until(lambda: FileLedger(cli.state).snapshot().waiting)
    other.kill()
    other.wait()
    assert waiter.wait(30) == 143
    assert not FileLedger(cli.state).snapshot().waiting


def test_an_interrupt_that_reaches_all_leaves_nothing(cli: Cli, owner) -> None:
    """As a terminal does it: the one that was called, and the one that waits for it, are told at once."""
    FileLedger(cli.state).register(Request("me", (Claim.parse("gpu:0"),)))
    for _ in range(5):
        argv = [sys.executable, "-m", "necrocode", "claim", "-q", "--pid", str(owner.pid), "gpu:0"]
        waiter = subprocess.Popen(argv, cwd=cli.where, env=cli.environment(), start_new_session=True)
        cli.started.append(waiter)
        until(lambda: FileLedger(cli.state).snapshot().waiting)
        os.killpg(waiter.pid, signal.SIGINT)
        assert waiter.wait(30) == 130
        assert os.listdir(cli.state / "queue") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_wait_leaves_nothing(cli: Cli, owner, number: signal.Signals) -> None:
    ledger = FileLedger(cli.state)
    lease = ledger.register(Request("me", (Claim.parse("gpu:0"),)))
    waiter = cli.start("claim", "--pid", str(owner.pid), "gpu:0")
    (waiting,) = until(lambda: FileLedger(cli.state).snapshot().waiting)
    waiter.send_signal(number)
    assert waiter.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -9)
    until(lambda: not is_alive(waiting.record.holder.pid))
    assert not FileLedger(cli.state).snapshot().waiting
    ledger.release(lease)
    check(cli.state)


@pytest.mark.parametrize("program", ["sh", "bash"])
@pytest.mark.parametrize(
    "how", ["id=$(necrocode claim gpu:0)", "necrocode claim gpu:0 >id", "necrocode claim gpu:0 | cat"]
)
def test_by_default_it_is_held_for_the_shell_that_called(cli: Cli, program: str, how: str) -> None:
    """A command substitution is a copy of the shell that ends at once; what was claimed in it must not."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    script = f"{how}; echo ready; read go; necrocode status --json >seen; read end"
    process = shell(cli, script, program)
    assert process.stdin and process.stdout
    while "ready" not in process.stdout.readline():
        pass
    (runner,) = FileLedger(cli.state).snapshot().runners
    assert runner.liveness == "alive" and runner.record.details["for_pid"] == str(process.pid)
    process.kill()
    process.wait()
    until(lambda: not live(cli))


def test_a_script_that_releases_goes_on_without(cli: Cli) -> None:
    script = 'id=$(necrocode claim file:a) && necrocode release "$id" && necrocode claim --no-wait file:a >/dev/null'
    process = shell(cli, f"{script} && echo good")
    out, err = process.communicate(timeout=60)
    assert out == "good\n", err
    until(lambda: not live(cli))


def test_the_holder_keeps_nothing_of_its_caller_open(cli: Cli, owner) -> None:
    """Who waits for the end of a pipe, or for a lock of flock(1), does not wait for the holder."""
    read_end, write_end = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "necrocode", "claim", "--pid", str(owner.pid), "gpu:0"], cwd=cli.where,
        env=cli.environment(), pass_fds=(write_end,), capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0  # and its stdout came to an end, or run() would not have returned
    os.close(write_end)
    os.set_blocking(read_end, False)
    assert os.read(read_end, 1) == b""
    (runner,) = FileLedger(cli.state).snapshot().runners
    pid = runner.record.holder.pid
    assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    os.close(read_end)


def test_a_holder_whose_lease_was_taken_away_ends(cli: Cli, owner) -> None:
    told = cli.json("claim", "--pid", str(owner.pid), "gpu:0")
    for file in (cli.state / "runners").iterdir():
        file.unlink()
    began = time.monotonic()
    until(lambda: not is_alive(told["pid"]), within=40.0)
    assert time.monotonic() - began < 30


def test_release_ends_claims_only(cli: Cli, owner) -> None:
    runner = cli.start("exec", "--name", "worker", "--", "sleep", "300")
    until(lambda: live(cli))
    wrong = cli("release", "worker")
    assert wrong.returncode == 2 and "necrocode stop worker" in wrong.stderr
    assert runner.poll() is None
    assert cli("release", "nobody").returncode == 2
    name = cli("claim", "--pid", str(owner.pid), "gpu:0").stdout.strip()
    assert cli.json("release", name) == {"released": [name]}
    again = cli("release", name)
    assert again.returncode == 0 and "already" in again.stderr
    runner.terminate()
    runner.wait(30)


def test_a_stopped_holder_is_ended_by_force(cli: Cli, owner) -> None:
    told = cli.json("claim", "--pid", str(owner.pid), "gpu:0")
    os.kill(told["pid"], signal.SIGSTOP)
    assert cli("release", told["runner_id"]).returncode == 0
    assert not is_alive(told["pid"]) and held(cli) == {}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--pid", "4194304000", "gpu:0"], "no process"),
        (["gpu"], "gpu"),
        (["--name", "../x", "gpu:0"], "cannot be an id"),
        ([], "CLAIM"),
    ],
)
def test_what_cannot_be_meant_is_a_mistake(cli: Cli, args: list[str], said: str) -> None:
    wrong = cli("claim", *args)
    assert wrong.returncode == 2 and said in wrong.stderr, wrong.stderr
    assert held(cli) == {}


def test_release_needs_a_name_or_a_process(cli: Cli) -> None:
    assert cli("release").returncode == 2
    assert cli("release", "x", "--pid", "1").returncode == 2
    assert cli("release", "--pid", "1").returncode == 0
