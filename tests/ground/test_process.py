"""Processes for real: identities, clocks, and trees that do not want to end."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stalls import longer

from necrocode import process
from necrocode.process import Ended, Limits, who
from necrocode.process import child as child_room
from necrocode.process import tree as trees
from necrocode.process.orphans import _subreaper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WRITTEN = "while ! [ -s pids ]; do sleep 0.01; done"
LONG = "300"  # seconds: what lives this long in a test was not ended by itself

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(process.__file__).parents[2])}

Run = Callable[..., Ended]


def eventually(fact: Callable[[], Any], within: float = 20.0) -> Any:
    """What `fact` gives once it is true; fails when it does not become true in time."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if found := fact():
            return found
        time.sleep(0.005)
    raise AssertionError(f"not within {within} s: {fact}")


def alive(pid: int) -> bool:
    seen = who.stat(pid)
    return seen is not None and not seen.ended


def zombies() -> list[who.Stat]:
    return [seen for seen in trees.table().values() if seen.parent == os.getpid() and seen.ended]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def marker() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex}"
    yield name
    left = process.marked(name)
    process.end_tree(name, grace=0)
    assert left == []


@pytest.fixture
def run(tmp_path: Path, marker: str) -> Iterator[Run]:
    """process.run with the usual arguments; afterwards nothing of it is left: descriptor, zombie, attribute."""

    def started(*argv: str, **options: Any) -> Ended:
        given: dict[str, Any] = {
            "cwd": tmp_path, "env": ENVIRONMENT, "marker": marker, "limits": Limits(),
            "stdout": tmp_path / "stdout.log", "stderr": tmp_path / "stderr.log",
        }  # fmt: skip
        return process.run(argv, **{**given, **options})

    gc.collect()  # what earlier tests dropped is closed now, not meanwhile
    before, dead, adopting = descriptors(), zombies(), _subreaper()
    yield started
    assert descriptors() <= before
    assert zombies() == dead
    assert _subreaper() == adopting
    assert trees.leaders == {}


def sh(script: str) -> tuple[str, str, str]:
    return ("sh", "-c", script)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-E", "-c", code)


def told(path: Path, count: int) -> list[int]:
    """The pids that a program wrote, one a line, as soon as there are that many."""
    text = path.read_text() if path.exists() else ""
    pids = [int(line) for line in text.splitlines()] if text.endswith("\n") else []
    return pids if len(pids) >= count else []


# identity


def test_identity_is_what_the_kernel_says() -> None:
    ours = process.identity()
    assert ours.pid == os.getpid()
    assert ours.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip() == process.boot_id()
    assert ours.start_ticks == int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    assert ours.pid_namespace == os.stat("/proc/self/ns/pid").st_ino
    assert ours.host == os.uname().nodename and ours.user
    assert process.identity() is ours
    assert not process.is_gone(ours)


def test_a_forked_child_is_somebody_else() -> None:
    code = """
import os, json
from necrocode import process
first = process.identity()
pid = os.fork()
if pid == 0:
    mine = process.identity()
    os._exit(0 if mine.pid == os.getpid() != first.pid and not process.is_gone(mine) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def sleeper() -> Iterator[tuple[subprocess.Popen[bytes], object]]:
    child = subprocess.Popen(["sleep", LONG])
    seen = who.stat(child.pid)
    yield child, process.identity()._replace(pid=child.pid, start_ticks=seen.ticks)
    child.kill()
    child.wait()


def test_gone_only_on_proof(sleeper: Any) -> None:
    child, it = sleeper
    assert not process.is_gone(it)
    assert process.is_gone(it._replace(start_ticks=it.start_ticks - 1)), "another process has that number now"
    assert process.is_gone(it._replace(boot_id="another")), "the host was booted since"
    child.send_signal(signal.SIGSTOP)
    assert not process.is_gone(it), "stopped is not gone"
    child.kill()
    eventually(lambda: process.is_gone(it))
    assert child.returncode is None, "a zombie, not reaped yet, is gone"
    child.wait()
    assert process.is_gone(it)


def test_what_cannot_be_seen_from_here_is_not_gone(sleeper: Any) -> None:
    child, it = sleeper
    child.kill()
    child.wait()
    assert process.is_gone(it)
    assert not process.is_gone(it._replace(pid_namespace=it.pid_namespace + 1))
    assert not process.is_gone(it._replace(boot_id="another", host="elsewhere")), "another machine may still run it"
    ours = process.identity()
    other_clock = ours._replace(time_namespace=ours.time_namespace + 1, start_ticks=1)
    assert not process.is_gone(other_clock), "its start time counts from elsewhere"


def test_a_name_cannot_forge_the_process_table() -> None:
    line = "42 (x) R 1 1 1 (y) S 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 12345 0 0"
    assert who.parsed(42, line) == who.Stat(42, "S", 7, 8, 9, 3, 12345)


def test_a_main_thread_that_ended_first_is_no_dead_process() -> None:
    code = "import threading, time, ctypes\nthreading.Thread(target=time.sleep, args=(300,)).start()\n"
    child = subprocess.Popen([sys.executable, "-c", code + "ctypes.CDLL(None).pthread_exit(None)"])
    try:
        seen = eventually(lambda: (it := who.stat(child.pid)) and it.state == "Z" and it)
        assert not seen.ended
        assert not process.is_gone(process.identity()._replace(pid=child.pid, start_ticks=seen.ticks))
    finally:
        child.kill()
        child.wait()


def test_who_has_locked_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert process.locker(path) is None and process.locker(tmp_path / "none") is None
    with path.open() as file, path.open() as other:
        assert process.locker(path) is None, "it is only open"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert process.locker(path) == process.identity()
        child = subprocess.Popen(["flock", path, "true"])  # it waits
        assert process.locker(path) == process.identity()
        fcntl.flock(file, fcntl.LOCK_UN)
        assert child.wait() == 0 and other and process.locker(path) is None


def test_kill_holder_kills_exactly_that_process(sleeper: Any) -> None:
    child, it = sleeper
    assert not process.kill_holder(it._replace(start_ticks=it.start_ticks + 1))
    assert not process.kill_holder(it._replace(boot_id="another"))
    assert not process.kill_holder(it._replace(pid_namespace=1))
    assert child.poll() is None
    assert process.kill_holder(it)
    assert child.wait(timeout=20) == -signal.SIGKILL
    assert not process.kill_holder(it)


def test_in_a_namespace_with_a_foreign_proc_nothing_is_proven_or_ended(marker: str) -> None:
    code = f"""
import os
from necrocode import process
ours = process.identity()
assert not process.is_gone(ours)
assert not process.is_gone(ours._replace(pid=99999)), "its /proc speaks of other processes"
assert process.marked({marker!r}) == [] and process.end_tree({marker!r}, grace=0) == ()
"""
    argv = ["unshare", "--pid", "--fork", "--", sys.executable, "-c", code]
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("may not make pid namespaces")
    subprocess.run(argv, check=True)


def test_both_process_tables_agree(sleeper: Any) -> None:
    child, _ = sleeper
    seen, other = who.stat(child.pid), who._stat_elsewhere(child.pid)
    assert (seen.pid, seen.parent, seen.group, seen.session, seen.ended) == (
        other.pid, other.parent, other.group, other.session, other.ended,
    )  # fmt: skip


# one program


def test_a_program_ends_by_itself(run: Run, tmp_path: Path) -> None:
    ended = run(*sh("echo out; echo err >&2; exit 7"))
    assert (ended.exit_code, ended.signal, ended.why, ended.survivors) == (7, None, "exited", ())
    assert (ended.stdout_bytes, ended.stderr_bytes, ended.truncated, ended.log_error) == (4, 4, False, "")
    assert (tmp_path / "stdout.log").read_bytes() == b"out\n"
    assert (tmp_path / "stderr.log").read_bytes() == b"err\n"
    assert 0 < ended.seconds < 60 and ended.max_rss_mb > 0


def test_a_program_killed_by_a_signal(run: Run) -> None:
    ended = run(*sh("kill -ABRT $$"))
    assert (ended.exit_code, ended.signal, ended.why) == (None, signal.SIGABRT, "exited")


def test_cpu_time_of_the_whole_tree(run: Run) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    ended = run(*sh(f'"{sys.executable}" -S -E -c "{burn}"; true'))
    assert 0.3 <= ended.cpu_seconds < 5


def test_its_own_session_marked_and_without_input(run: Run, marker: str) -> None:
    lines: list[bytes] = []
    code = "import os,sys; print(os.getsid(0)==os.getpid(), os.environ['NECROCODE_LEASE'], repr(sys.stdin.read()))"
    run(*python(code), on_line=lambda _, line: lines.append(line))
    assert lines == [f"True {marker} ''".encode()]


def test_input_of_any_size_is_given(run: Run) -> None:
    lines: list[bytes] = []
    text = "häß\udcff" * 300_000
    run(*sh("wc -c"), stdin_text=text, on_line=lambda _, line: lines.append(line))
    assert int(lines[0]) == len(text.encode("utf-8", "surrogateescape"))
    assert run("true", stdin_text=text).exit_code == 0, "nobody has to read it"


def test_no_shell_ever_reads_the_arguments(run: Run) -> None:
    lines: list[bytes] = []
    run("printf", "%s", "$(id); `id` > x", on_line=lambda _, line: lines.append(line))
    assert lines == [b"$(id); `id` > x"]


def test_descriptors_are_handed_over_and_no_others(run: Run) -> None:
    read, write = os.pipe()
    lines: list[bytes] = []
    code = f"""
import os
os.write({write}, b"through")
print(*[fd for fd in range(3, 999) if os.path.exists(f"/proc/self/fd/{{fd}}")])
"""
    try:
        run(*python(code), pass_fds=[write], on_line=lambda _, line: lines.append(line))
        assert os.read(read, 99) == b"through"
    finally:
        os.close(read)
        os.close(write)
    assert lines == [str(write).encode()]


def test_the_leader_is_told(run: Run) -> None:
    pids: list[int] = []
    lines: list[bytes] = []
    run(*sh("echo $$"), on_started=pids.append, on_line=lambda _, line: lines.append(line))
    assert [int(line) for line in lines] == pids


@pytest.mark.parametrize("argv", [("no-such-program",), ("./missing",), ("/nonexistent/x",)])
def test_not_found(run: Run, argv: tuple[str, ...]) -> None:
    ended = run(*argv)
    assert (ended.exit_code, ended.why) == (127, "not_found")
    assert argv[0] in ended.error


def test_a_broken_directory_in_the_path_hides_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    env = {**ENVIRONMENT, "PATH": f"{tmp_path}/loop:{ENVIRONMENT['PATH']}"}
    assert run("no-such-program", env=env).why == "not_found"
    assert run("true", env=env).exit_code == 0


def test_not_executable(run: Run, tmp_path: Path) -> None:
    plain, empty, script = tmp_path / "plain", tmp_path / "empty", tmp_path / "a-script"
    plain.write_text("#!/bin/sh\n")
    empty.write_bytes(b"\0\1\2")
    empty.chmod(0o755)
    script.write_text("#!/no/such/interpreter -x\n")
    script.chmod(0o755)
    for path in (plain, empty, tmp_path, script):
        ended = run(str(path))
        assert (ended.exit_code, ended.why) == (126, "not_executable"), path
        assert ended.error
    assert "its interpreter /no/such/interpreter is not there" in run(str(script)).error
    assert "interpreter" in run("a-script", env={**ENVIRONMENT, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}).error
    ended = run("true", "x" * 5_000_000)
    assert ended.why == "not_executable", "the system's limit for one argument"
    assert "too long; put long text into a file" in ended.error


def test_a_missing_directory_is_the_callers_mistake(run: Run, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        run("true", cwd=tmp_path / "missing")
    with pytest.raises(ValueError, match="null byte"):
        run("true", "a\0b")


# clocks and wishes


def test_the_total_clock(run: Run) -> None:
    ended = run("sleep", LONG, limits=Limits(total=0.2))
    assert (ended.exit_code, ended.signal, ended.why) == (None, signal.SIGTERM, "timeout")
    assert 0.2 <= ended.seconds < 9, "it did not take the grace"


def test_a_program_may_end_in_its_own_way_when_its_time_is_over(run: Run) -> None:
    """What it starts to clean up is not asked to end, and what it says meanwhile is read, or it would hang."""
    ended = run(
        *sh("trap 'sleep 0.3 && head -c 300000 /dev/zero; exit 5' TERM; echo; while :; do sleep 0.01; done"),
        limits=Limits(after_result=0.0), on_line=lambda *_: True,
    )  # fmt: skip
    assert (ended.exit_code, ended.why, ended.stdout_bytes) == (5, "lingered", 300_001)


def test_the_silent_clock_starts_anew_with_each_output(run: Run) -> None:
    for silent in longer(1.3):
        script = f"for i in 1 2 3 4; do sleep 0.4; echo $i >&2; done; sleep {LONG}"
        ended = run(*sh(script), limits=Limits(silent=silent))
        assert ended.why == "silent"
        if ended.stderr_bytes == 8:  # else one of them came late
            assert ended.seconds >= 1.6 + silent
            return
    pytest.fail("it was never quick enough")


def test_a_flood_without_end_does_not_hold_the_clocks(run: Run) -> None:
    ended = run("yes", limits=Limits(total=0.5, log_bytes=1000))
    assert ended.why == "timeout"
    assert ended.truncated and ended.stdout_bytes > 1000


@pytest.mark.parametrize("kind", [threading.Event, process.Stop])
def test_stop(run: Run, kind: Any) -> None:
    stop = kind()
    ended = run("sleep", LONG, stop=stop, on_started=lambda _: threading.Timer(0.2, stop.set).start())
    assert (ended.why, ended.signal) == ("stopped", signal.SIGTERM)
    assert run("sleep", LONG, stop=stop).why == "stopped", "also when it was set before"
    if kind is process.Stop:
        stop.close()


def test_after_its_result_a_program_has_little_time(run: Run) -> None:
    ended = run(
        *sh(f"echo working; echo result; sleep {LONG}"),
        limits=Limits(after_result=0.1), on_line=lambda _, line: line == b"result",
    )  # fmt: skip
    assert ended.why == "lingered"


def test_a_callback_that_raises_ends_the_tree(run: Run, tmp_path: Path) -> None:
    def broken(_: str, line: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(*sh(f"trap '' TERM; echo $$ > pids; setsid sleep {LONG} & echo x; sleep {LONG}"), on_line=broken)
    assert not alive(told(tmp_path / "pids", 1)[0])
    with pytest.raises(ZeroDivisionError):
        run("sleep", LONG, on_started=lambda pid: broken("", b""))


# trees that do not want to end

DAEMON = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
with open("pids", "a") as file: file.write(f"{os.getpid()}\\n")
MORE
time.sleep(300)
"""


@pytest.mark.parametrize("more", ["", "os.kill(os.getpid(), signal.SIGSTOP)"], ids=["deaf", "stopped"])
def test_a_double_forked_daemon_that_ignores_everything(run: Run, tmp_path: Path, more: str) -> None:
    (tmp_path / "daemon.py").write_text(DAEMON.replace("MORE", more))
    ended = run(*sh(f'"{sys.executable}" -S -E daemon.py; {WRITTEN}'), limits=Limits(grace=0.2))
    assert (ended.exit_code, ended.why, ended.survivors) == (0, "exited", ())
    assert not alive(told(tmp_path / "pids", 1)[0])


def test_what_ends_by_itself_soon_is_not_ended(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_room, "QUIET", 20.0)  # a loaded machine is slow
    ended = run(*sh("(trap 'echo termed >> how' TERM; sleep 0.1; echo ended >> how) & "))
    assert (tmp_path / "how").read_text() == "ended\n"
    assert ended.seconds < 15


def test_a_process_that_stopped_itself_may_still_end_well(run: Run) -> None:
    ended = run(
        *sh("trap 'exit 3' TERM; echo; kill -STOP $$; while :; do sleep 0.01; done"),
        limits=Limits(after_result=0.2), on_line=lambda *_: True,
    )  # fmt: skip
    assert (ended.exit_code, ended.why) == (3, "lingered")


def test_a_held_pipe_does_not_hold_us(run: Run, tmp_path: Path) -> None:
    ended = run(*sh(f"nohup setsid sleep {LONG} & echo said; exit 4"), limits=Limits(grace=0.2))
    assert (ended.exit_code, ended.stdout_bytes) == (4, 5)
    assert ended.seconds < 30


def test_a_storm_of_forks(run: Run, tmp_path: Path) -> None:
    storm = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(7):
    if os.fork() == 0 and generation % 2: os.setsid()
with open("pids", "a") as file: file.write(f"{os.getpid()}\\n")
time.sleep(300)
"""
    stop = process.Stop()
    done = threading.Thread(target=lambda: (eventually(lambda: told(tmp_path / "pids", 128), 60), stop.set()))
    ended = run(*python(storm), stop=stop, limits=Limits(grace=0.3, total=80), on_started=lambda _: done.start())
    done.join()
    stop.close()
    assert (ended.why, ended.survivors) == ("stopped", ())
    assert not [pid for pid in told(tmp_path / "pids", 128) if alive(pid)]


@pytest.mark.parametrize(("adopt", "pause"), [(True, 0.0), (False, 0.01)])
def test_a_comet_that_forks_on_and_on(run: Run, adopt: bool, pause: float) -> None:
    """Each process starts the next in a session of its own and ends at once: there is no pid that stays."""
    comet = f"""
import os, time
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork(): os._exit(0)
    os.setsid()
    time.sleep({pause})
"""
    ended = run(*python(comet), limits=Limits(grace=0.1), adopt=adopt)
    assert ended.survivors == ()
    assert ended.seconds < 30
    for dead in [] if adopt else zombies():
        os.waitpid(dead.pid, 0)  # a first of its session may be the embedder's own child: not ours to take


CLEARED = f"env -i setsid sh -c 'echo $$ >> pids; exec sleep {LONG}' >/dev/null 2>&1 </dev/null &"


def test_a_cleared_environment_is_found_by_its_parents(run: Run, tmp_path: Path) -> None:
    ended = run(
        *sh(f"{CLEARED} {WRITTEN}; echo; sleep {LONG}"),
        limits=Limits(after_result=0.0, grace=0.2), on_line=lambda *_: True,
    )  # fmt: skip
    assert (ended.why, ended.survivors) == ("lingered", ())
    assert not alive(told(tmp_path / "pids", 1)[0])


def test_a_cleared_environment_seen_once_is_known_for_good(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_room, "LOOK", 0.1)
    ended = run(*sh(f"{CLEARED} {WRITTEN}; sleep 1"), limits=Limits(grace=0.2))
    assert ended.exit_code == 0
    assert not alive(told(tmp_path / "pids", 1)[0])


def test_an_orphan_without_environment_is_found_in_its_session(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees.Tree, "look", never_before_the_end(trees.Tree.look))
    ended = run(*sh(f"(env -i sh -c 'echo $$ >> pids; sleep {LONG}' &) ; {WRITTEN}"), limits=Limits(grace=0.2))
    assert ended.exit_code == 0
    assert not alive(told(tmp_path / "pids", 1)[0])


def test_a_known_orphan_does_not_get_lost_by_leaving(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_room, "LOOK", 0.1)
    leaver = """
import os, time
while not os.path.exists("go"): time.sleep(0.01)
os.setsid()
with open("pids", "a") as file: file.write(f"{os.getpid()}\\n")
time.sleep(300)
"""
    (tmp_path / "leaver.py").write_text(leaver)
    orphan = f'(env -i "{sys.executable}" -S -E leaver.py >/dev/null 2>&1 &)'
    ended = run(*sh(f"{orphan} ; sleep 1; touch go; {WRITTEN}"), limits=Limits(grace=0.2))
    assert ended.exit_code == 0
    assert not alive(told(tmp_path / "pids", 1)[0])


def test_adopting_finds_what_shows_no_trace(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees.Tree, "look", never_before_the_end(trees.Tree.look))
    ended = run(*sh(f"{CLEARED} {WRITTEN}"), limits=Limits(grace=0.2), adopt=True)
    assert ended.exit_code == 0
    assert not alive(told(tmp_path / "pids", 1)[0])


def never_before_the_end(look: Callable[[trees.Tree], list[who.Stat]]) -> Callable[[trees.Tree], list[who.Stat]]:
    """A look that sees nothing while the leader lives, as if the machine were too slow."""

    def blind(tree: trees.Tree) -> list[who.Stat]:
        return [] if any(alive(pid) for pid in trees.leaders) else look(tree)

    return blind


def test_zombies_of_the_tree_are_reaped_while_it_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_room, "LOOK", 0.1)
    started: list[threading.Thread] = []

    def watch() -> None:
        try:
            eventually((tmp_path / "all").exists)
            eventually(lambda: not zombies())
        finally:
            (tmp_path / "done").touch()

    def start(_: int) -> None:
        started.append(threading.Thread(target=watch))
        started[0].start()

    orphans = "for i in 1 2 3 4 5 6; do setsid sh -c 'sleep 0.1 & sleep 0.02 &' ; done; sleep 0.3; touch all;"
    ended = run(*sh(f"{orphans} while ! [ -e done ]; do sleep 0.05; done"), on_started=start)
    started[0].join()
    assert (ended.exit_code, zombies()) == (0, [])
    assert ended.seconds < 15, "they were reaped before the end"


# in company


def test_programs_of_others_are_left_alone(run: Run, tmp_path: Path) -> None:
    """The embedding program has children of its own, even daemons: nobody ends them or takes their status."""
    environment = {**os.environ, "OTHER": "1"}
    there = tmp_path / "daemon"
    live = subprocess.Popen(["sleep", LONG], env=environment, start_new_session=True)
    early = subprocess.Popen(sh("exit 41"), start_new_session=True)
    late: list[subprocess.Popen[bytes]] = []

    def meanwhile(_: int) -> None:
        late.append(subprocess.Popen(sh("exit 42"), start_new_session=True))
        late.append(subprocess.Popen(sh("exit 43")))
        subprocess.run(sh(f"setsid sh -c 'echo $$ > {there}; exec sleep {LONG}' >/dev/null 2>&1 &"), check=True)

    ended = run(*sh(f"setsid sleep {LONG} & sleep 0.5"), limits=Limits(grace=0.2), on_started=meanwhile)
    daemon = eventually(lambda: told(there, 1))[0]
    try:
        assert (ended.exit_code, ended.survivors) == (0, ())
        assert live.poll() is None
        assert alive(daemon)
        assert [early.wait(), *(child.wait() for child in late)] == [41, 42, 43]
    finally:
        live.kill()
        live.wait()
        os.kill(daemon, signal.SIGKILL)
        eventually(lambda: not alive(daemon))
        if who.stat(daemon).parent == os.getpid():
            os.waitpid(daemon, 0)


def test_several_at_once_do_not_end_each_other(run: Run, tmp_path: Path, marker: str) -> None:
    results: dict[int, Ended] = {}

    def one(number: int) -> None:
        place = tmp_path / str(number)
        place.mkdir()
        script = f"setsid sleep {LONG} & {'exit 9' if number % 2 else 'sleep 0.6; echo done'}"
        results[number] = run(
            *sh(script), cwd=place, marker=f"{marker}.{number}", stdout=place / "out", stderr=place / "err",
            limits=Limits(grace=0.1),
        )  # fmt: skip

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number].exit_code for number in range(8)] == [0, 9] * 4
    assert [results[number].stdout_bytes for number in range(8)] == [5, 0] * 4
    assert not [number for number in range(8) if process.marked(f"{marker}.{number}")]


def test_a_signal_ignored_by_the_embedder(run: Run) -> None:
    """With SIGCHLD ignored the kernel throws statuses away: told as unknown, never as success."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        ended = run(*sh("exit 3"))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (ended.exit_code, ended.signal, ended.survivors) == (None, None, ())


# from another process

CARRIER = """
import os, sys
from pathlib import Path
from necrocode import process
marker, place, script = sys.argv[1:]
process.run(["sh", "-c", script], cwd=place, env=dict(os.environ), stdout=Path(place, "o"), stderr=Path(place, "e"),
            limits=process.Limits(), marker=marker)
"""


@pytest.fixture
def abandoned(tmp_path: Path, marker: str) -> list[int]:
    """The pids of a tree whose runner was killed: a leader and a detached process."""
    deaf = f"trap '' TERM; echo $$ >> pids; sleep {LONG}; sleep {LONG}"
    script = f"setsid sh -c 'echo $$ >> pids; exec sleep {LONG}' & {deaf}"
    carrier = subprocess.Popen([sys.executable, "-c", CARRIER, marker, str(tmp_path), script], env=ENVIRONMENT)
    pids: list[int] = eventually(lambda: told(tmp_path / "pids", 2))
    carrier.kill()
    carrier.wait()
    return pids


def test_a_tree_is_ended_from_elsewhere(abandoned: list[int], marker: str) -> None:
    assert set(abandoned) <= set(process.marked(marker))
    assert process.end_tree(marker, grace=0.2) == ()
    assert not [pid for pid in abandoned if alive(pid)]
    assert process.end_tree(marker) == (), "nothing there is nothing to do"


def test_from_elsewhere_a_leader_brings_what_is_not_marked(tmp_path: Path) -> None:
    script = f"env -i sh -c 'echo $$ >> pids; exec sleep {LONG}' & wait"
    child = subprocess.Popen(sh(script), cwd=tmp_path, start_new_session=True)
    (pid,) = eventually(lambda: told(tmp_path / "pids", 1))
    leader = process.identity()._replace(pid=child.pid, start_ticks=who.stat(child.pid).ticks)
    reaper = threading.Thread(target=child.wait)
    reaper.start()
    assert process.end_tree("no-such-marker", leader, grace=5) == ()
    reaper.join()
    eventually(lambda: not alive(pid))


def test_a_caller_inside_the_tree_is_spared(run: Run, marker: str) -> None:
    lines: list[bytes] = []
    code = f"from necrocode import process; print(process.end_tree({marker!r}, grace=0))"
    ended = run(*sh(f'sleep {LONG} & "{sys.executable}" -c "{code}"; exit 6'), on_line=lambda _, it: lines.append(it))
    assert (ended.exit_code, lines) == (6, [b"()"])


def test_sampling_a_tree(run: Run, marker: str) -> None:
    samples: list[trees.Sample] = []
    stop = process.Stop()
    watchers: list[threading.Thread] = []

    def busy(sampler: process.Sampler) -> bool:
        samples.append(sampler.look())
        return samples[-1].processes >= 2 and samples[-1].cpu_percent > 5

    def look(pid: int) -> None:
        sampler = process.Sampler(marker, process.identity()._replace(pid=pid, start_ticks=who.stat(pid).ticks))
        try:
            eventually(lambda: busy(sampler))
        finally:
            stop.set()

    def started(pid: int) -> None:
        watchers.append(threading.Thread(target=look, args=(pid,)))
        watchers[0].start()

    run(*python("import os\nos.fork()\nwhile True: pass"), stop=stop, on_started=started)
    watchers[0].join()
    stop.close()
    assert samples[0].cpu_percent == 0.0
    assert 1 < samples[-1].memory_mb < 1000


def test_a_process_out_of_descriptors_says_so_and_leaves_nothing(run: Run) -> None:
    taken: list[int] = []
    try:
        with pytest.raises(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for free in range(16):
            for fd in taken[:free]:
                os.close(fd)
            try:
                ended = run("true")
            except OSError as error:
                assert error.errno == 24
            else:
                assert ended.exit_code == 0
            taken[:free] = [os.open("/dev/null", os.O_RDONLY) for _ in range(free)]
    finally:
        for fd in taken:
            os.close(fd)
