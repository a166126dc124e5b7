"""necrocode why, logs and stop: one real run with tasks that end, fail, wait for each other and go on for long."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from actors import Puppet
from cli_call import Cli, calls, kill, until

from necrocode import journal, process, scratch
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.order import taken_by
from necrocode.runs import runs
from necrocode.statedir import mark
from necrocode.testing import is_alive

TASKS = '''
[[task]]
id = "quick"
command = ["sh", "-c", "printf 'hello \\\\033[31mred\\\\033[0m\\\\rover\\\\n'; echo oops >&2; echo q > q.txt"]
verify = [["sh", "-c", "echo checked"]]

[[task]]
id = "slow"
command = ["sh", "-c", """
    cd $NECROCODE_STATE_DIR/..
    setsid sleep 300 & echo $! > pid
    echo begun
    touch begun
    wait"""]
files = ["a.txt"]

[[task]]
id = "second"
command = ["true"]
files = ["a.txt"]

[[task]]
id = "later"
command = ["true"]
after = ["slow"]

[[task]]
id = "bad"
command = ["sh", "-c", "echo no >&2; exit 3"]

[[task]]
id = "never"
command = ["true"]
after = ["bad"]
'''


def made_repository(folder: Path) -> Path:
    place = folder / "repo"
    place.mkdir()
    (place / "a.txt").write_text("a\n")
    for argv in (["init", "-q", "-b", "main"], ["config", "user.name", "n"], ["config", "user.email", "e@x"],
                 ["add", "-A"], ["commit", "-qm", "one"]):  # fmt: skip
        subprocess.run(["git", *argv], cwd=place, check=True)
    (folder / "tasks.toml").write_text(TASKS)
    return place


@contextlib.contextmanager
def playing(folder: Path) -> Iterator[Cli]:
    with calls(folder / "state", made_repository(folder)) as made:
        yield made
        if (folder / "pid").exists():
            kill(int((folder / "pid").read_text()))


def begun(cli: Cli, folder: Path) -> str:
    """The id of a run in which `slow` is under way and all that can end has ended."""
    launcher = cli.start("run", str(folder / "tasks.toml"), "-n", "3")
    until((folder / "begun").exists)
    run_id = runs(FileLedger(cli.state).state)[0]
    attempts = cli.state / "runs" / run_id
    until(lambda: (attempts / "quick.1/result.json").exists() and (attempts / "bad.1/result.json").exists())
    until(lambda: any(event.task_id == "never" for event in journal.read(cli.state / "events", kind="task.cancelled")))
    assert launcher.poll() is None
    return run_id


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with playing(tmp_path) as made:
        yield made


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> str:
    return begun(cli, tmp_path)


class Seen(NamedTuple):
    """A run to look at, shared by all tests that change nothing."""

    cli: Cli
    run: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    with playing(folder) as made:
        yield Seen(made, begun(made, folder))


def end_slow(cli: Cli, tmp_path: Path) -> None:
    kill(int((tmp_path / "pid").read_text()))


def test_why(seen: Seen) -> None:
    cli, run = seen
    slow = cli("why", "slow")
    assert slow.returncode == 0 and slow.stdout.startswith(f"{run}/slow: runs for ") and "now in work" in slow.stdout
    assert "holds file:a.txt, " in slow.stdout and "and a slot" in slow.stdout
    second = cli("why", f"{run}.second").stdout
    assert (
        second.startswith(f"{run}/second: comes after slow\n") and "slow is under way; both want file:a.txt" in second
    )
    assert cli("why", f"{run}/later").stdout.startswith(f"{run}/later: comes after slow\n")
    bad = cli("why", "bad").stdout
    assert bad.startswith(f"{run}/bad: failed after ") and "because: sh ended with 3" in bad
    assert "1 commit on necrocode/" in cli("why", "quick").stdout
    assert cli("why", f"{run}/never").stdout.startswith(f"{run}/never: will not be started: ")


def test_status_shows_what_is_to_come(seen: Seen) -> None:
    """Who waits within a run, behind whom, for what; not what has ended, failed, or will not be started."""
    cli, run = seen
    to_come = {one.pop("task_id"): one for one in cli.json("status")["to_come"]}
    behind = {"run_id": run, "behind": ["slow"], "places": 3, "again": False}
    assert to_come == {"second": {**behind, "claims": ["file:a.txt"]}, "later": {**behind, "claims": []}}
    shown = cli("status", COLUMNS="120").stdout
    assert "0 waiting   2 tasks to come" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith(f"{run}.")}
    assert rows[f"{run}.second"] == ["file:a.txt", f"{run}.slow"]
    assert rows[f"{run}.later"] == ["its", "turn", f"{run}.slow"]


def test_nothing_is_to_come_of_a_run_that_nobody_follows(cli: Cli, run: str) -> None:
    assert len(cli.json("status")["to_come"]) == 2
    launcher = cli.started[0]
    launcher.kill()
    launcher.wait(30)
    assert cli.json("status")["to_come"] == [] and "to come" not in cli("status").stdout


def test_why_as_json(seen: Seen) -> None:
    cli, run = seen
    slow = cli.json("why", "slow")
    assert (slow["run_id"], slow["task_id"], slow["state"]) == (run, "slow", "running")
    assert slow["runner_id"] == f"{run}.slow.1" and "file:a.txt" in slow["holds"] and slow["since"]
    assert {event["kind"] for event in slow["story"]} >= {"lease.granted", "attempt.started", "phase.started"}
    bad = cli.json("why", f"{run}.bad.1")
    assert (bad["state"], bad["outcome"]["exit_code"]) == ("failed", 3)
    assert cli.json("why", "second")["state"] == "waiting"


@pytest.mark.parametrize(
    ("name", "said"),
    [("slwo", "did you mean slow"), ("RUN/slwo", "did you mean slow"), ("RUN", "is a run; name one of its tasks")],
)
def test_names_that_are_not_quite_right(seen: Seen, name: str, said: str) -> None:
    cli, run = seen
    done = cli("why", name.replace("RUN", run))
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr


def test_logs_are_safe_to_look_at(seen: Seen) -> None:
    cli, run = seen
    shown = cli("logs", "quick")
    assert shown.stdout == "hello red\nover\noops\nchecked\n"
    assert "==> verify-1.stdout.log <==" in shown.stderr
    assert cli("logs", f"{run}/quick", "--stderr").stdout == "oops\n"
    assert "\x1b[31mred" in cli("logs", f"{run}.quick.1", "--raw").stdout
    told = cli.json("logs", "quick", "--attempt", "1")
    assert told["logs"] == {
        "stdout.log": "hello red\nover\n", "stderr.log": "oops\n", "verify-1.stdout.log": "checked\n",
    } and told["ended"]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [(["quick", "--attempt", "7"], "its attempts: 1"), (["second"], "there is no attempt"), (["RUN"], "is no task")],
)
def test_logs_that_are_not_there(seen: Seen, args: list[str], said: str) -> None:
    cli, run = seen
    done = cli("logs", *[arg.replace("RUN", run) for arg in args])
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr


def test_following_goes_on_until_the_attempt_ends(cli: Cli, run: str, tmp_path: Path) -> None:
    follower = cli.start("logs", "-f", "slow")
    waiting = cli.start("logs", "-f", f"{run}/later")
    assert follower.stdout and follower.stdout.readline() == "begun\n"
    assert waiting.stderr and "has not begun; waiting for it" in waiting.stderr.readline()
    with (cli.state / "runs" / run / "slow.1" / "stdout.log").open("a") as log:
        log.write("half a ")
        log.flush()
        log.write("line\n")
    assert follower.stdout.readline() == "half a line\n"
    end_slow(cli, tmp_path)
    assert follower.wait(60) == waiting.wait(60) == 0


def test_stop_a_task(cli: Cli, run: str, tmp_path: Path) -> None:
    pid = int((tmp_path / "pid").read_text())
    done = cli("stop", "slow")
    assert (done.returncode, done.stdout.split(" after ")[0]) == (0, f"{run}.slow.1 ended"), done.stderr
    assert not is_alive(pid)
    assert cli.started[0].wait(60) == 1  # the run itself went on to its end
    assert cli.json("why", "slow")["state"] == "cancelled"
    assert cli.json("why", "second")["state"] == "done"
    asked = cli.json("why", "slow")["story"]
    assert any(event["kind"] == "stop.asked" and "pid" in event["by"] for event in asked)
    again = cli("stop", "slow")
    assert (again.returncode, again.stdout) == (0, "nothing to stop\n") and "does not run now" in again.stderr


def test_stop_a_run(cli: Cli, run: str, tmp_path: Path) -> None:
    told = cli.json("stop", run)["stopped"]
    assert [(one["name"], one["how"]) for one in told] == [(f"launcher of {run}", "asked"), (f"{run}.slow.1", "asked")]
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert cli.started[0].wait(60) == 143
    assert cli.json("why", "second")["state"] == "cancelled"


def test_stop_what_a_killed_launcher_and_a_killed_runner_left(cli: Cli, run: str, tmp_path: Path) -> None:
    pid = int((tmp_path / "pid").read_text())
    cli.started[0].kill()
    cli.started[0].wait()
    runner = cli.json("status")["runners"][0]
    assert runner["runner_id"] == f"{run}.slow.1"  # it survives its launcher
    kill(runner["pid"])
    until(lambda: not is_alive(runner["pid"]))
    assert is_alive(pid)
    (place,) = scratch_of(cli, run, "slow.1")
    done = cli("stop", "--all", "--grace", "1")
    assert not os.path.exists(place)
    assert done.returncode == 0 and "had died; what it left was ended" in done.stdout, done
    assert not is_alive(pid)
    assert cli.json("status")["runners"] == []
    assert "nobody follows its run now" in cli("why", f"{run}/second").stdout


@pytest.mark.parametrize("of_a_run", [True, False])
def test_who_has_died_is_not_said_to_run_while_others_keep_its_lease(
    cli: Cli, tmp_path: Path, request: pytest.FixtureRequest, of_a_run: bool
) -> None:
    if of_a_run:
        name, task = f"{request.getfixturevalue('run')}.slow.1", "slow"
    else:
        name = task = "mine"
        cli.start("exec", "--name", "mine", "--", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 300")
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    assert cli.json("status")["runners"][0]["orphaned"] is False
    pid = cli.json("status")["runners"][0]["pid"]
    cli.started[0].kill()
    cli.started[0].wait()
    kill(pid)
    until(lambda: not is_alive(pid))
    said = f"its program has ended (pid {pid}); processes that it started go on and keep what it holds: "
    said += f"necrocode stop {name}" + (f", or necrocode run --resume {name[:6]}" if of_a_run else "")
    why = cli("why", task).stdout
    assert said in why and "runs for" not in why and "and a slot" in why
    assert cli.json("why", task)["state"] == "orphaned"
    status = cli("status", COLUMNS="500").stdout
    assert f"! {name}: {said}" in status and "orphaned!" in status and "1 unwell" in status
    assert cli.json("status")["runners"][0]["orphaned"] is True
    (found,) = [one for one in cli.json("doctor")["findings"] if one["name"] == "leases" and not one["ok"]]
    assert said in found["said"] and found["fix"] == f"necrocode stop {name}"
    assert cli("stop", name).returncode == 0 and "orphaned" not in cli("status").stdout


def test_a_launcher_that_ends_by_itself_is_not_said_to_be_ended_by_force(cli: Cli, tmp_path: Path) -> None:
    deaf = f"trap '' TERM; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    tasks = tmp_path / "deaf.toml"
    tasks.write_text(f'[[task]]\nid = "deaf"\nworkspace = "none"\ncommand = ["sh", "-c", "{deaf}"]\n')
    launcher = cli.start("run", str(tasks))
    until((tmp_path / "begun").exists)
    run_id = runs(FileLedger(cli.state).state)[0]
    told = {one["name"]: one["how"] for one in cli.json("stop", run_id, "--grace", "0.3")["stopped"]}
    assert told == {f"launcher of {run_id}": "asked", f"{run_id}.deaf.1": "killed"}
    assert launcher.wait(30) == 143


def test_a_launcher_whose_name_cannot_be_read_is_stopped_all_the_same(cli: Cli, tmp_path: Path) -> None:
    tasks = tmp_path / "long.toml"
    tasks.write_text(
        f'[[task]]\nid = "long"\nworkspace = "none"\nretries = 9\n'
        f'command = ["sh", "-c", "touch {tmp_path}/begun; exec sleep 300"]\n'
    )
    launcher = cli.start("run", str(tasks))
    until((tmp_path / "begun").exists)
    run_id = runs(FileLedger(cli.state).state)[0]
    (cli.state / "runs" / run_id / "launcher.json").write_text("garbled")
    told = {one["name"]: one["how"] for one in cli.json("stop", run_id)["stopped"]}
    assert told == {f"launcher of {run_id}": "asked", f"{run_id}.long.1": "asked"}
    assert launcher.wait(30) == 143
    assert json.loads((cli.state / "runs" / run_id / "long.1" / "result.json").read_text())["status"] == "cancelled"


def test_who_follows_a_run_already_is_named_with_what_to_do(cli: Cli, run: str) -> None:
    done = cli("run", "--resume", run)
    assert done.returncode == 75 and f"run {run} is followed already, by pid {cli.started[0].pid} on " in done.stderr
    assert f"necrocode wait {run}" in done.stderr and "slot" not in done.stderr


def scratch_of(cli: Cli, run: str, attempt: str) -> list[str]:
    folder = cli.state / "runs" / run / attempt
    return scratch.remains(folder, taken_by(folder))


def test_gc_removes_the_scratch_directory_that_a_killed_runner_left_once_nobody_uses_it(
    cli: Cli, run: str, tmp_path: Path
) -> None:
    cli.started[0].kill()
    cli.started[0].wait()
    assert not [thing for thing in cli.json("gc")["things"] if thing["kind"] == "scratch"]
    runner = cli.json("status")["runners"][0]["pid"]
    kill(runner)
    until(lambda: not is_alive(runner))
    (place,) = scratch_of(cli, run, "slow.1")
    cli.json("gc", "--yes")
    assert os.path.exists(place), "the agent lives, and may have its files there"
    pid = int((tmp_path / "pid").read_text())
    kill(pid)
    until(lambda: not process.marked(mark(cli.state, f"{run}.slow.1")))
    (Path(place) / "left").touch()
    (thing,) = [thing for thing in cli.json("gc", "--yes")["things"] if thing["kind"] == "scratch"]
    assert (thing["name"], thing["do"]) == (place, "removed") and not os.path.exists(place)


def test_a_task_in_several_runs_is_that_of_the_newest_but_for_stopping(cli: Cli, run: str, tmp_path: Path) -> None:
    end_slow(cli, tmp_path)
    cli.started[0].wait(60)
    (tmp_path / "tasks.toml").write_text('[[task]]\nid = "quick"\ncommand = ["echo", "again"]\n')
    assert cli("run", str(tmp_path / "tasks.toml"), "--workspace", "none").returncode == 0
    shown = cli("logs", "quick")
    assert shown.stdout == "again\n" and f"also in {run}" in shown.stderr
    assert cli("logs", f"{run}/quick").stdout.startswith("hello")


# -- anybody's runners


def test_stop_an_exec_that_is_deaf(cli: Cli, tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/deaf; while :; do sleep 0.1; done"
    process = cli.start("exec", "--name", "deaf", "--", "sh", "-c", script)
    pid = int(until(lambda: (tmp_path / "deaf").exists() and (tmp_path / "deaf").read_text()))
    done = cli("stop", "deaf", "--grace", "0.3")
    assert (done.returncode, "ended by force" in done.stdout) == (0, True), done
    assert not is_alive(pid) and process.wait(30) == 137
    assert cli("why", "deaf").stdout.startswith("deaf: has ended, and gave back what it held")


def test_stop_a_waiter_and_why_it_waited(cli: Cli, tmp_path: Path, puppet: Callable[..., Puppet]) -> None:
    ledger = FileLedger(cli.state)
    ledger.register(Request("holder", (Claim.parse("gpu:0"),)))
    process = cli.start("exec", "--name", "late", "--claim", "gpu:0", "--", "true")
    until(lambda: ledger.snapshot().waiting)
    why = cli("why", "late").stdout
    assert (
        why.startswith("late: waits for gpu:0, for ")
        and f"gpu:0 is held by holder (token 4294967297, pid {os.getpid()}" in why
    )
    assert cli.json("why", "late")["blockers"][0]["runner_id"] == "holder"
    assert cli("stop", "late").stdout.startswith("late left the queue after ")
    assert process.wait(30) == 143
    assert not ledger.snapshot().waiting and [s.record.runner_id for s in ledger.snapshot().runners] == ["holder"]
    assert "left the queue" in cli("why", "late").stdout


def test_stop_ends_nobody_who_only_has_the_number_of_a_dead_holder(cli: Cli, tmp_path: Path) -> None:
    """A record whose process has ended and whose pid is somebody else's now."""
    ledger = FileLedger(cli.state)
    script = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    process = cli.start("exec", "--name", "gone", "--", "sh", "-c", script)
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    process.kill()
    process.wait()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        [name] = os.listdir(cli.state / "runners")
        record = json.loads((cli.state / "runners" / name).read_text())
        (cli.state / "runners" / name).write_text(json.dumps({**record, "pid": bystander.pid}))
        done = cli("stop", "gone", "--grace", "0.5")
        assert done.returncode == 0 and not is_alive(pid), done
        assert is_alive(bystander.pid) and bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()
    assert [seen for seen in ledger.snapshot().runners if seen.liveness == "alive"] == []
