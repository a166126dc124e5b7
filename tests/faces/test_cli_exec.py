"""necrocode exec: the command is as it would be without it, but for its turn."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import Cli, calls, kill, until
from stalls import longer

from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.statedir import mark
from necrocode.testing import is_alive


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as made:
        yield made


@pytest.fixture
def ledger(state_root: Path) -> FileLedger:
    return FileLedger(state_root)


def runners(ledger: FileLedger) -> list[str]:
    return [seen.record.runner_id for seen in ledger.snapshot().runners]


def test_streams_and_exit_code_are_the_commands_own(cli: Cli, ledger: FileLedger) -> None:
    done = cli("exec", "--", "sh", "-c", "cat; echo bad >&2; exit 7", stdin="from outside")
    assert (done.returncode, done.stdout, done.stderr) == (7, "from outside", "bad\n")
    assert runners(ledger) == []


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["no-such-program"], 127, "no-such-program: No such file"),
        (["./data"], 126, "./data: Permission denied"),
        (["./script"], 126, "./script: its interpreter /no/such/interpreter is not there"),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["true"], 0, ""),
    ],
)
def test_how_it_ended_is_passed_on(cli: Cli, ledger: FileLedger, command: list[str], code: int, said: str) -> None:
    (cli.where / "data").write_text("no program\n")
    (cli.where / "script").write_text("#!/no/such/interpreter\n")
    (cli.where / "script").chmod(0o755)
    done = cli("exec", "--", *command)
    assert (done.returncode, done.stdout) == (code, "") and said in done.stderr
    assert bool(done.stderr) is bool(said)
    assert runners(ledger) == []


def test_a_command_without_a_name_is_a_mistake_in_the_call(cli: Cli, ledger: FileLedger) -> None:
    done = cli("exec", "--", "")
    assert done.returncode == 2 and "names no program" in done.stderr and "hint: " in done.stderr
    assert list(ledger.state.events.iterdir()) == []


def test_options_of_the_command_are_not_ours(cli: Cli) -> None:
    assert cli("exec", "echo", "--name", "x", "-h", "--", "-q").stdout == "--name x -h -- -q\n"


def test_what_the_command_knows_and_inherits(cli: Cli, state_root: Path) -> None:
    tell = "import os, json; fds = [f'/proc/self/fd/{n}' for n in range(1024)];"
    tell += "fds = [fd for fd in fds if os.path.lexists(fd)];"
    tell += "print(json.dumps([dict(os.environ), [os.readlink(fd) for fd in fds]]))"
    done = cli("exec", "--name", "me", "--claim", "port:8080", "--", sys.executable, "-c", tell, MINE="kept")
    env, files = json.loads(done.stdout)
    assert {key: env[f"NECROCODE_{key}"] for key in ("RUNNER", "LEASE", "PORTS", "STATE_DIR")} == {
        "RUNNER": "me", "LEASE": mark(state_root, "me"), "PORTS": "8080", "STATE_DIR": str(state_root),
    }  # fmt: skip
    assert int(env["NECROCODE_TOKEN"]) > 0 and env["MINE"] == "kept"
    assert [file for file in files if file.startswith(str(state_root))] == [str(state_root / "live" / "me")]


@pytest.mark.parametrize("inner", [("exec", "--file", "a", "--", "true"), ("claim", "file:a")])
def test_what_the_runner_around_it_holds_is_not_waited_for(
    cli: Cli, ledger: FileLedger, inner: tuple[str, ...]
) -> None:
    necrocode = (sys.executable, "-m", "necrocode", "--state-dir", str(ledger.state.root))
    done = cli("exec", "--name", "outer", "--file", "a", "--", *necrocode, *inner)
    assert done.returncode == 75 and "is held by outer" in done.stderr and "inside that very runner" in done.stderr
    assert runners(ledger) == []
    assert cli("exec", "--file", "a", "--", *necrocode, "exec", "--file", "b", "--", "echo", "in").stdout == "in\n"


def test_signals_are_as_the_command_expects_them(cli: Cli) -> None:
    """Nothing is blocked in the command, and what the interpreter ignores is not."""
    argv = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
    plain = subprocess.run(argv, capture_output=True, text=True)
    assert _masks(cli("exec", "--", *argv).stdout) == _masks(plain.stdout)


def _masks(status: str) -> list[int]:
    # 32 and 33 are the C library's own, and no program can use them.
    return [int(line.split()[1], 16) & ~(3 << 31) for line in status.splitlines()]


def test_it_waits_says_for_whom_and_goes_on(cli: Cli, ledger: FileLedger) -> None:
    lease = ledger.register(Request("holder", (Claim.parse("gpu:0"),)))
    process = cli.start("exec", "--claim", "gpu:0", "--name", "late", "--", "echo", "mine")
    until(lambda: ledger.snapshot().waiting)
    ledger.release(lease)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "mine\n")
    assert "waiting: gpu:0 is held by holder" in err and f"pid {os.getpid()}" in err


def test_without_waiting_it_ends_with_75_and_names_the_holder(cli: Cli, ledger: FileLedger) -> None:
    ledger.register(Request("holder", (Claim.parse("gpu:0"),)))
    done = cli("exec", "--claim", "gpu:0", "--no-wait", "--", "echo", "mine")
    assert (done.returncode, done.stdout) == (75, "") and "gpu:0 is held by holder" in done.stderr


def test_a_wait_that_is_too_long_ends_with_124(cli: Cli, ledger: FileLedger) -> None:
    ledger.register(Request("holder", (Claim.parse("gpu:0"),)))
    done = cli("exec", "--claim", "gpu:0", "--timeout", "0.2", "--", "echo", "mine")
    assert (done.returncode, done.stdout) == (124, "") and "gpu:0 is held by holder" in done.stderr
    assert not ledger.snapshot().waiting


def test_a_name_that_is_taken_is_told_with_by_whom(cli: Cli, ledger: FileLedger) -> None:
    ledger.register(Request("mine"))
    done = cli("exec", "--name", "mine", "--", "true")
    assert done.returncode == 75 and "the name mine is taken by token " in done.stderr
    assert f"pid {os.getpid()}" in done.stderr and "necrocode wait mine" in done.stderr and "slot" not in done.stderr


def test_one_limit_for_all(cli: Cli, tmp_path: Path) -> None:
    """Six commands at a limit of two: never three at once, and all of them run."""
    count = (
        "import os, sys, time; place = sys.argv[1]; mine = os.path.join(place, str(os.getpid())); open(mine, 'w');"
        "time.sleep(0.1); print(len(os.listdir(place))); os.unlink(mine)"
    )
    place = tmp_path / "inside"
    place.mkdir()
    argv = ["exec", "-q", "--limit", "2", "--", sys.executable, "-c", count, str(place)]
    processes = [cli.start(*argv) for _ in range(6)]
    seen = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, seen
    assert max(int(out) for out, _ in seen) <= 2


def test_files_are_the_repositorys_wherever_they_are_named_from(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    repository, other = tmp_path / "repo", tmp_path / "other"
    (repository / "src").mkdir(parents=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x"]
    for argv in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "one"],
                 ["worktree", "add", "-q", str(other)]):  # fmt: skip
        subprocess.run([*git, *argv], cwd=repository, check=True, capture_output=True)
    cli.where = repository / "src"
    process = cli.start("exec", "--file", "a.py", "--branch", "fix", "--name", "one", "--", "sleep", "60")
    until(lambda: "one" in runners(ledger))
    held = [str(claim) for claim in ledger.snapshot().runners[0].record.claims]
    assert held == ["file:src/a.py", "branch:fix"]
    for where, claim in ((other, "--file=src/a.py"), (repository, "--branch=fix/more"), (repository, "--file=src/")):
        assert cli("exec", "--no-wait", claim, "--", "true", where=where).returncode == 75, claim
    # Another directory's src/a.py, and a place outside of any repository, are others.
    assert cli("exec", "--no-wait", "--file=src/a.py", "--", "true", where=tmp_path).returncode == 0
    assert cli("exec", "--no-wait", f"--file={tmp_path}/src/a.py", "--", "true", where=repository).returncode == 0
    process.terminate()
    process.wait(30)


def test_what_it_leaves_in_the_background_keeps_the_lease(cli: Cli, ledger: FileLedger) -> None:
    done = cli("exec", "--claim", "gpu:0", "--name", "first", "--", "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    assert done.returncode == 0
    pid = int(done.stdout)
    try:
        assert cli("exec", "--claim", "gpu:0", "--no-wait", "--", "true").returncode == 75
    finally:
        kill(pid)
    until(lambda: not is_alive(pid))
    assert cli("exec", "--claim", "gpu:0", "--timeout", "20", "--", "true").returncode == 0


def test_a_command_whose_exec_was_killed_keeps_the_lease(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    process = cli.start("exec", "--claim", "gpu:0", "--", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    process.kill()
    process.wait()
    assert cli("exec", "--claim", "gpu:0", "--no-wait", "--", "true").returncode == 75
    kill(pid)
    assert cli("exec", "--claim", "gpu:0", "--timeout", "20", "--", "true").returncode == 0


def test_a_lost_lease_ends_the_whole_tree(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & wait"
    process = cli.start("exec", "--name", "doomed", "--", "sh", "-c", script)
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    assert ledger.fence("doomed")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 125 and "the command was ended" in err
    assert not is_alive(pid)
    assert runners(ledger) == []


def test_its_time_limit_ends_the_whole_tree(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    script = f"setsid sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; sleep 60' & wait"
    for clock in longer(1.0):
        done = cli("exec", "--time-limit", str(clock), "--grace", "0.2", "--", "sh", "-c", script)
        assert done.returncode == 124 and "out of time after" in done.stderr
        assert runners(ledger) == []
        if (tmp_path / "pid").exists() and (pid := (tmp_path / "pid").read_text()):
            assert not is_alive(int(pid))
            return
    pytest.fail("it never began in time")


COUNTING = """
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: got.append("TERM"))
print("ready", flush=True)
until = time.monotonic() + 30
while not got and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.3)
print(",".join(got), flush=True)
sys.exit(5)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_it_alone_reaches_the_command_once(cli: Cli, number: signal.Signals) -> None:
    process = cli.start("exec", "--", sys.executable, "-c", COUNTING)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (5, number.name.removeprefix("SIG"))


def test_ctrl_c_on_a_terminal_reaches_the_command_once(cli: Cli) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cli.where)
        argv = [sys.executable, "-m", "necrocode", "exec", "--", sys.executable, "-c", COUNTING]
        os.execve(sys.executable, argv, cli.environment())
    try:
        said = _said(terminal, b"ready")
        os.write(terminal, b"\x03")
        said += _said(terminal, b"INT")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5 and said.count(b"INT") == 1, said


def _said(terminal: int, word: bytes) -> bytes:
    text, until = b"", time.monotonic() + 30
    while word not in text and time.monotonic() < until:
        try:
            text += os.read(terminal, 4096)
        except OSError:
            break
    return text


def test_json_tells_the_end_on_stderr(cli: Cli) -> None:
    done = cli("exec", "--json", "--name", "me", "--", "sh", "-c", "echo out; exit 3")
    told = json.loads(done.stderr)
    assert (done.stdout, told["runner_id"], told["exit_code"], told["why"]) == ("out\n", "me", 3, "exited")
