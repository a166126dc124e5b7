"""`necrocode run` as a person has it: a real process, real signals, closed streams, full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from byhand import sh

from necrocode import process
from necrocode.order import taken_by
from necrocode.runs import attempts_of_all
from necrocode.statedir import StateDir, mark
from necrocode.testing import check, wait_for

FOREVER = "while [ ! -e GO ]; do sleep 0.02; done"


class Command:
    """A directory with a task file, and the command in it."""

    def __init__(self, tmp: Path, where: Path) -> None:
        self.tmp, self.where, self.state = tmp, where, tmp / "state"
        self.log, self.go = tmp / "log", tmp / "go"
        self.log.touch()

    def write(self, tasks: dict[str, str], name: str = "tasks.toml", head: str = "", **terms: str) -> Path:
        path = self.tmp / name
        text = head
        for task_id, script in tasks.items():
            script = f"echo {task_id} >> {self.log}; {script.replace('GO', str(self.go))}"
            text += (
                f'[[task]]\nid = "{task_id}"\ncommand = ["sh", "-c", {json.dumps(script)}]\n{terms.get(task_id, "")}\n'
            )
        path.write_text(text)
        return path

    def argv(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-m", "necrocode", "--state-dir", str(self.state), "run", *map(str, args)]

    def start(self, *args: str | Path, **more: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.argv(*args), cwd=self.where, text=True, **{**pipes, **more})

    def run(self, *args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        with self.start(*args) as started:
            out, said = started.communicate(timeout=60)
        assert started.returncode == code, (started.returncode, out, said)
        return subprocess.CompletedProcess(started.args, started.returncode, out, said)

    def look(self, verb: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "necrocode", "--state-dir", str(self.state), *verb.split()]
        env = {**os.environ, "COLUMNS": "300"}
        done = subprocess.run(argv, cwd=self.where, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    @property
    def begun(self) -> list[str]:
        return self.log.read_text().split()

    @property
    def runs(self) -> list[str]:
        return os.listdir(self.state / "runs")

    def carriers(self) -> list[int]:
        """The pids of the runners that ever carried something."""
        state = StateDir(self.state)
        every = [folder for run in self.runs for fs in attempts_of_all(state, run).values() for _, folder in fs]
        return [carrier.pid for folder in every if (carrier := taken_by(folder))]

    def assert_at_rest(self) -> None:
        state = StateDir(self.state)
        for run in self.runs:
            for folders in attempts_of_all(state, run).values():
                for _, folder in folders:
                    carrier = taken_by(folder)
                    wait_for(lambda: carrier is None or process.is_gone(carrier))  # noqa: B023
                    assert process.marked(mark(self.state, f"{run}.{folder.name}")) == []
        assert os.listdir(state.runners) == [] and check(self.state)


@pytest.fixture
def command(tmp_path: Path, repository: Path) -> Command:
    return Command(tmp_path, repository)


@pytest.fixture
def plain(tmp_path: Path) -> Command:
    return Command(tmp_path, tmp_path)


NO_WORKSPACE = '[defaults]\nworkspace = "none"\n'


def test_from_a_file_to_branches(command: Command) -> None:
    file = command.write({"one": "echo 1 > one.txt", "two": "cat one.txt > two.txt"}, two='after = ["one"]')
    done = command.run(file, "-n", "2")
    assert "one" in done.stdout and "done" in done.stdout and "finished" not in done.stdout
    assert "started" in done.stderr and command.runs[0] in done.stderr
    branch = f"necrocode/{command.runs[0]}/two"
    assert sh("git", "show", f"{branch}:two.txt", cwd=command.where) == "1"
    assert sh("git", "status", "--porcelain", cwd=command.where) == ""
    assert not os.path.exists(f"{command.where}.worktrees") or os.listdir(f"{command.where}.worktrees") == []
    command.assert_at_rest()


def test_what_no_branch_has_is_told_at_the_end(command: Command) -> None:
    nested = "git init -q inner && cd inner && git commit -q --allow-empty -m x"
    done = command.run(command.write({"outer": nested, "other": "touch new.txt"}))
    place = f"{command.where}.worktrees/{command.runs[0]}-outer"
    assert "its workspace was kept" in done.stdout and "nothing to commit" not in done.stdout
    assert f"kept: {place}: another repository is nested in it, which no snapshot can save: inner" in done.stderr
    assert "look into what was kept; necrocode gc shows all of it" in done.stderr
    told = json.loads(command.run("--resume", "last", "--json").stdout)["kept"]
    assert [(one["task_id"], one["path"]) for one in told] == [("outer", place)]


def test_names_of_places_do_nothing_to_a_terminal(tmp_path: Path, repository: Path) -> None:
    place = tmp_path / "odd\x1b[31m\nplace"
    place.mkdir()
    odd = Command(place, repository.rename(place / "repo"))
    (odd.where / "new.txt").touch()
    done = odd.run(odd.write({"a": "true"}))
    assert "note: tasks do not see 1 uncommitted change" in done.stderr
    seen = odd.look("status").stdout
    odd.state = place / "none"
    for told in (done.stderr, done.stdout, seen, odd.look("status").stdout):
        assert told and "\x1b" not in told
        assert not [line for line in told.splitlines() if line.startswith("place")]


def test_as_json_it_is_one_document_and_nothing_else(plain: Command) -> None:
    done = plain.run(plain.write({"one": "exit 4"}, head=NO_WORKSPACE), "--json", code=1)
    said = json.loads(done.stdout)
    assert said["run"] == plain.runs[0] and done.stderr == ""
    assert [(task["task_id"], task["status"], task["exit_code"]) for task in said["tasks"]] == [("one", "failed", 4)]


@pytest.mark.parametrize(("program", "code"), [("no-such-program", 127), ("./tasks.toml", 126)])
def test_a_program_that_cannot_be_started_is_the_exit_code(plain: Command, program: str, code: int) -> None:
    file = plain.tmp / "tasks.toml"
    file.write_text(f'{NO_WORKSPACE}[[task]]\nid = "t"\ncommand = ["{program}"]\n')
    done = plain.run(file, code=code)
    task = f"{plain.runs[0]}/t"
    assert program in done.stdout and f"see: necrocode why {task} " in done.stderr
    assert plain.look("logs t").stderr == f"necrocode: {task} has printed nothing (necrocode why {task})\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[task]]\nid = "a"\ncommand = ["true"]\nretires = 1\n', "retries"),
        ('[[task]]\nid = "a"\ncommand = ["true"]\nafter = ["b"]\n', "b"),
        ('[[task]]\nid = "a"\nprompt = "do"\n', "no agent"),
        ('[[task]]\nid = "a..b"\ncommand = ["true"]\n', "a..b"),
        ("[[task]\n", "tasks.toml:1"),
        ("", "is empty"),
    ],
)
def test_a_file_that_cannot_be_used_touches_nothing(command: Command, text: str, said: str) -> None:
    (command.tmp / "tasks.toml").write_text(text)
    done = command.run(command.tmp / "tasks.toml", code=2)
    assert said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert not command.state.exists() or command.runs == []
    assert sh("git", "branch", cwd=command.where) == "* main"


def test_a_file_that_is_a_pipe_is_refused_at_once(plain: Command) -> None:
    os.mkfifo(plain.tmp / "fifo.toml")
    assert "it is no regular file" in plain.run(plain.tmp / "fifo.toml", code=2).stderr


def test_outside_a_repository_it_says_what_to_do(plain: Command) -> None:
    said = plain.run(plain.write({"a": "true"}), code=2).stderr
    assert "git" in said and "hint" in said and plain.begun == []


def test_a_dry_run_shows_order_and_conflicts_and_starts_nothing(command: Command) -> None:
    tasks = {"a": "true", "b": "true", "c": "true"}
    same = 'files = ["README.md"]'
    done = command.run(command.write(tasks, a=same, b=same, c='after = ["b"]'), "--dry-run", "--json")
    rows = {row["task_id"]: row for row in json.loads(done.stdout)["tasks"]}
    assert (rows["b"]["behind"], rows["c"]["after"]) == (["a"], ["b"]) and command.begun == []
    claim = "file:README.md"
    assert [rows[name]["claims"] for name in "abc"] == [[claim], [claim], []]
    assert rows["b"]["conflicts"] == [{"after": "a", "wanted": claim, "held": claim}] and rows["a"]["conflicts"] == []
    assert sh("git", "branch", cwd=command.where) == "* main"


def test_only_some_of_the_tasks(plain: Command) -> None:
    file = plain.write({"a": "true", "b": "true", "c": "true"}, head=NO_WORKSPACE, b='after = ["a"]')
    assert "taken as done" in plain.run(file, "--only", "b").stderr
    assert plain.begun == ["b"]
    assert "no-such" in plain.run(file, "--only", "no-such", code=2).stderr


def test_failed_tasks_are_tried_once_more_and_done_ones_are_not(plain: Command) -> None:
    file = plain.write({"good": "true", "bad": f"test -e {plain.go}"}, head=NO_WORKSPACE)
    plain.run(file, code=1)
    plain.run("--resume", "last", code=1)
    assert sorted(plain.begun) == ["bad", "good"]
    plain.go.touch()
    plain.run(file, "--failed")
    assert sorted(plain.begun) == ["bad", "bad", "good"] and len(plain.runs) == 1
    assert "there is no run" in plain.run("--resume", "nosuch", code=2).stderr


# -- signals


def until_told(started: subprocess.Popen[str], word: str) -> None:
    """Until the line of a change with this word, and no task, was printed."""
    assert started.stderr
    seen = []
    while not seen or seen[-1].split()[-1:] != [word] or "cancelled" in seen[-1]:
        seen.append(started.stderr.readline())
        assert seen[-1], f"it ended with {started.wait()} after {seen}"


def interrupted(command: Command, times: int, number: int = signal.SIGINT) -> subprocess.Popen[str]:
    """A run of two that work and one that comes later, after so many signals."""
    script = f"trap '' TERM; {FOREVER}" if times > 2 else FOREVER
    file = command.write({"a": script, "b": script, "late": "true"}, head=NO_WORKSPACE)
    started = command.start(file, "-n", "2", start_new_session=True)
    try:
        wait_for(lambda: len(command.begun) == 2, within=30.0)
        assert started.stderr
        for sent in range(times):
            started.send_signal(number)
            if sent < 2:  # the third one is answered by its end
                until_told(started, "interrupted")
    except BaseException:
        started.kill()
        raise
    return started


def test_interrupted_once_it_lets_end_what_runs(plain: Command) -> None:
    with interrupted(plain, 1) as started:
        plain.go.touch()
        out, said = started.communicate(timeout=30)
        assert started.returncode == 130
    assert sorted(plain.begun) == ["a", "b"]
    assert said.endswith(f"go on with: necrocode run --resume {plain.runs[0]}\n")
    assert out.count("done") == 2 and "cancelled" in out
    plain.run("--resume", "last")
    assert sorted(plain.begun) == ["a", "b", "late"]
    plain.assert_at_rest()


def test_interrupted_twice_it_ends_what_runs(plain: Command) -> None:
    with interrupted(plain, 2) as started:
        out, _ = started.communicate(timeout=30)
        assert started.returncode == 130 and out.count("cancelled") == 3
    plain.assert_at_rest()
    plain.go.touch()
    plain.run("--resume", "last")
    assert sorted(plain.begun) == ["a", "a", "b", "b", "late"]


def test_interrupted_three_times_it_leaves_and_the_runners_go_on(plain: Command) -> None:
    with interrupted(plain, 3) as started:
        _, said = started.communicate(timeout=30)
        assert started.returncode == 130 and f"--resume {plain.runs[0]}" in said
    plain.go.touch()
    plain.run("--resume", "last")
    assert sorted(set(plain.begun)) == ["a", "b", "late"]
    plain.assert_at_rest()


def test_sigterm_ends_what_runs(plain: Command) -> None:
    with interrupted(plain, 1, signal.SIGTERM) as started:
        _, said = started.communicate(timeout=30)
        assert started.returncode == 143
    assert not [line for line in said.splitlines() if line.split()[-1:] == ["interrupted"] and "cancelled" not in line]
    assert sorted(plain.begun) == ["a", "b"]
    plain.assert_at_rest()


# -- streams


def test_nobody_has_to_read_its_progress(plain: Command) -> None:
    file = plain.write(
        {"a": FOREVER, "b": "true", "c": "true"}, head=NO_WORKSPACE, b='after = ["a"]', c='after = ["b"]'
    )
    with plain.start(file) as started:
        wait_for(lambda: plain.begun, within=30.0)
        assert started.stderr
        started.stderr.close()
        plain.go.touch()
        assert started.wait(30) == 0
    assert plain.begun == ["a", "b", "c"]
    plain.assert_at_rest()


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_do_not_matter(plain: Command, closed: tuple[int, ...]) -> None:
    file = plain.write({"a": "true", "b": "echo out; echo err >&2"}, head=NO_WORKSPACE)
    shut = " ".join({0: "<&-", 1: ">&-", 2: "2>&-"}[number] for number in closed)
    script = f'exec "$@" {shut}'
    done = subprocess.run(["sh", "-c", script, "sh", *plain.argv(file)], cwd=plain.where, timeout=60, check=False)
    assert done.returncode == 0
    assert sorted(plain.begun) == ["a", "b"]
    logs = (plain.state / "runs" / plain.runs[0] / "b.1").glob("std*.log")
    assert {log.name: log.read_text() for log in logs} == {"stdout.log": "out\n", "stderr.log": "err\n"}


# -- disks


@contextmanager
def tiny_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tiny file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tiny file system to be had: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(plain: Command) -> None:
    with tiny_disk(plain.tmp / "disk", "2m"):
        plain.state = plain.tmp / "disk" / "state"
        filler = plain.tmp / "disk" / "filler"
        fill = f"head -c 10000000 /dev/zero > {filler} 2>/dev/null; true"
        tasks = {"a": "true", "b": fill, "c": "true", "d": "true"}
        follows = {one: f'after = ["{before}"]' for before, one in zip("abc", "bcd", strict=True)}
        file = plain.write(tasks, head=NO_WORKSPACE, **follows)
        told = plain.run(file, "-n", "1", code=125)
        assert "No space left" in told.stderr and "Traceback" not in told.stderr, told.stderr
        assert f"--resume {plain.runs[0]}" in told.stderr and "free some space" in told.stderr
        again = plain.run("--resume", "last", code=125)
        assert "No space left" in again.stderr
        wait_for(lambda: all(_is_over(pid) for pid in plain.carriers()))
        filler.unlink()
        (plain.tmp / "tasks.toml").unlink()
        filler.mkdir()  # so that the task cannot fill it again
        plain.run("--resume", "last")
        assert plain.begun.count("a") == 1 and plain.begun[-2:] == ["c", "d"]
        plain.assert_at_rest()


def _is_over(pid: int) -> bool:
    from necrocode.process.who import stat

    seen = stat(pid)
    return seen is None or seen.ended


def test_a_disk_too_small_for_a_workspace_is_told_with_what_to_do(command: Command) -> None:
    (command.where / "big").write_bytes(os.urandom(1 << 20))
    sh("git", "add", "-A", cwd=command.where)
    sh("git", "commit", "-qm", "big", cwd=command.where)
    with tiny_disk(command.tmp / "disk", "500k"):
        file = command.write({"a": "true"})
        done = command.run(file, "--workspaces", command.tmp / "disk" / "all", code=1)
        told = command.look("why a").stdout
    assert "error: unable to write file big" in told and "free some space" in told
    assert f"see: necrocode why {command.runs[0]}/a " in done.stderr


def test_a_disk_that_is_full_at_the_start_leaves_no_run(plain: Command) -> None:
    with tiny_disk(plain.tmp / "disk", "1m"):
        plain.state = plain.tmp / "disk" / "state"
        StateDir(plain.state)
        (plain.tmp / "disk" / "filler").write_bytes(bytes(os.statvfs(plain.state).f_bavail * 4096))
        told = plain.run(plain.write({"a": "true"}, head=NO_WORKSPACE), code=125)
        assert "No space left" in told.stderr and "nothing was half-written" in told.stderr
        assert plain.runs == []


def test_what_lies_on_a_read_only_disk_may_be_looked_at(plain: Command) -> None:
    with tiny_disk(plain.tmp / "disk", "2m"):
        plain.state = plain.tmp / "disk" / "state"
        plain.run(plain.write({"a": "echo said"}, head=NO_WORKSPACE))
        subprocess.run(["mount", "-o", "remount,ro", str(plain.tmp / "disk")], check=True)
        told = {verb: plain.look(verb).stdout for verb in ("status", "why a", "logs a", "report", "events", "metrics")}
        assert "said" in told["logs a"] and all(told.values())
        checked = plain.look("doctor", code=1).stdout
        assert "read-only: only looking works" in checked and "chmod" not in checked
        refused = plain.run(plain.tmp / "tasks.toml", code=125).stderr
        assert str(plain.state) in refused and "Read-only file system" in refused and len(plain.runs) == 1


def test_without_descriptors_it_says_what_to_raise(plain: Command) -> None:
    file = plain.write({"a": "true"}, head=NO_WORKSPACE)
    said = ""
    for most in (6, 8, 12):
        argv = ["sh", "-c", f'ulimit -n {most} && exec "$@"', "sh", *plain.argv(file)]
        done = subprocess.run(argv, cwd=plain.where, capture_output=True, text=True, timeout=60, check=False)
        said += done.stdout + done.stderr
        told = "Too many open files" in done.stdout + done.stderr
        assert not told or "raise `ulimit -n`" in done.stdout + done.stderr, (most, done.stdout, done.stderr)
    assert "Too many open files" in said


def test_a_state_directory_that_cannot_be_made_is_told(plain: Command) -> None:
    plain.state = plain.tmp / "file" / "state"
    (plain.tmp / "file").touch()
    told = plain.run(plain.write({"a": "true"}, head=NO_WORKSPACE), code=125)
    assert str(plain.tmp / "file") in told.stderr and "File exists" in told.stderr and plain.begun == []


def test_what_lies_in_the_current_directory_is_not_taken_for_python(plain: Command) -> None:
    """A repository may have a queue.py; neither the launcher's runners nor anything else of ours imports it."""
    for name in ("json.py", "selectors.py", "queue.py", "necrocode.py"):
        (plain.where / name).write_text("raise SystemExit('imported from the current directory')\n")
    script = "import sys; from necrocode.cli import main; sys.exit(main(sys.argv[1:]))"
    file = plain.write({"a": "true"}, head=NO_WORKSPACE)
    argv = [sys.executable, "-P", "-c", script, "--state-dir", str(plain.state), "run", str(file), "-q"]
    done = subprocess.run(argv, cwd=plain.where, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_no_prompt_reaches_a_shell(command: Command) -> None:
    """Refused before anything is touched; one that was planned before this was refused fails at its work."""
    mark, file = command.tmp / "mark", command.tmp / "prompt.toml"
    file.write_text(f'[[task]]\nid = "a"\nprompt = "$(touch {mark})"\n')
    told = command.run(file, "--agent", "sh -c 'echo {prompt}'", code=2).stderr
    assert "{prompt} stands in the script of sh" in told and "hint: give it to the script as an argument" in told
    assert not command.state.exists()
    command.run(file, "--agent", "sh -c 'printf %s \"$1\"; exit 1' sh {prompt}", code=1)
    (plan,) = command.state.glob("runs/*/plan.json")
    facts = json.loads(plan.read_text())
    facts["agents"] = {name: ["sh", "-c", "echo {prompt}"] for name in facts["agents"]}
    plan.write_text(json.dumps(facts))
    assert "stands in the script" in command.run("--failed", code=1).stdout
    assert not mark.exists()


def test_an_agent_with_a_relative_path_is_the_workspaces_own_or_the_callers(command: Command) -> None:
    for name, word in (("tracked", "committed"), ("untracked", "here")):
        (command.where / name).write_text(f"#!/bin/sh\necho {word} $1 > said\n")
        (command.where / name).chmod(0o755)
    sh("git", "add", "tracked", cwd=command.where)
    sh("git", "commit", "-qm", "tool", cwd=command.where)
    (command.where / "tracked").write_text("#!/bin/sh\nexit 1\n")
    file = command.tmp / "prompt.toml"
    for name, word in (("./tracked", "committed"), ("./untracked", "here"), ("sub/../untracked", "here")):
        file.write_text('[[task]]\nid = "a"\nprompt = "it"\n')
        (command.where / "sub").mkdir(exist_ok=True)
        run = json.loads(command.run(file, "--agent", f"{name} {{prompt}}", "--json").stdout)
        assert sh("git", "show", f"{run['tasks'][0]['branch']}:said", cwd=command.where).strip() == f"{word} it"


def test_what_cannot_be_saved_is_told_with_what_helps(command: Command) -> None:
    """A ref stands where the folder of snapshots would be; force would save there, too, and help no more."""
    ref = "refs/necrocode/snap"
    sh("git", "update-ref", ref, "HEAD", cwd=command.where)
    file = command.write({"a": f"echo precious > p.txt; test -e {command.go}"}, a="retries = 1")
    told = json.loads(command.run(file, "--json", code=1).stdout)["tasks"][0]["error"]
    assert f"git update-ref -d {ref}" in told and "gc --force" not in told
    sh("git", "update-ref", "-d", ref, cwd=command.where)
    command.go.touch()
    command.run(file, "--failed")
    (saved,) = sh("git", "for-each-ref", "--format=%(refname)", ref, cwd=command.where).splitlines()
    assert sh("git", "show", f"{saved}:p.txt", cwd=command.where).strip() == "precious"
