"""S3: workers that are processes. They are killed as a tree, and what cannot travel is told."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time

import pytest
import s3_work
from stalls import longer

from necrocode.concurrency import TaskStatus, Unfit, WorkerPool, WorkerPoolConfig
from necrocode.process import marked

HAS_CLOUDPICKLE = importlib.util.find_spec("cloudpickle") is not None


def until(fact, within=30.0):
    end = time.monotonic() + within
    while not fact():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def pool_of(**settings):
    return WorkerPool(WorkerPoolConfig(**{"executor": "process", "max_retries": 0, "max_workers": 1, **settings}))


@pytest.fixture(scope="module")
def pool():
    """One pool for all that does no harm to it."""
    with pool_of() as pool:
        yield pool


def outcome(pool, function, *args):
    return pool.get_task_result(pool.submit_task("t", function, args), timeout=60)


def test_a_worker_is_a_process_in_its_own_session(pool):
    pid, session = outcome(pool, s3_work.session).result
    assert pid == session != os.getpid()
    again = outcome(pool, s3_work.session)
    assert again.result == (pid, session), "it is used again"
    assert again.metrics.worker_id == f"process-{pid}"


@pytest.mark.parametrize("how", ["sleep_with_a_child", "fork_and_sleep"])
def test_an_attempt_whose_time_is_over_is_killed_with_all_it_started(how, tmp_path):
    """S3-13, S3-07: no cooperation needed; the worker is replaced, the next task runs."""
    place = tmp_path / "pids"
    for clock in longer(2.0):
        place.write_text("")
        with pool_of(task_timeout_seconds=clock) as pool:
            result = outcome(pool, getattr(s3_work, how), str(place))
            assert not result.success and isinstance(result.error, TimeoutError)
            assert result.metrics.status is TaskStatus.FAILED
            pids = [int(pid) for pid in place.read_text().split()]
            until(lambda pids=pids: all(is_gone(pid) for pid in pids))
            again = outcome(pool, s3_work.double, 21)
            assert pool.abandoned_tasks() == []
        if len(pids) == 2 and again.result == 42:
            return
    pytest.fail("it never began in time")


@pytest.mark.parametrize("how", [s3_work.die, s3_work.kill_myself])
def test_a_process_that_dies(how):
    """Its task fails with the reason; the next one gets a new process."""
    with pool_of() as pool:
        result = outcome(pool, how)
        told = "with exit code 3" if how is s3_work.die else "by SIGKILL"
        assert told in str(result.error)
        assert outcome(pool, s3_work.double, 1).result == 2


def test_a_process_that_dies_is_tried_again(tmp_path):
    with pool_of(max_retries=2, backoff_base_seconds=0.01) as pool:
        result = outcome(pool, s3_work.die)
    assert not result.success and result.metrics.retries_used == 2


def test_a_closed_pool_leaves_no_process():
    """S3-07, S3-18."""
    with pool_of(max_workers=2) as pool:
        ids = [pool.submit_task("t", s3_work.pid) for _ in range(4)]
        pids = {pool.get_task_result(task_id, timeout=60).result for task_id in ids}
    assert all(is_gone(pid) for pid in pids)
    name = pool._engine._name
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_ctrl_c_ends_what_runs(tmp_path):
    place = tmp_path / "pids"
    with pytest.raises(KeyboardInterrupt), pool_of() as pool:
        pool.submit_task("t", s3_work.sleep_with_a_child, (str(place),))
        until(lambda: place.exists() and place.read_text())
        raise KeyboardInterrupt
    assert all(is_gone(int(pid)) for pid in place.read_text().split())


def test_the_workers_end_with_their_program(tmp_path):
    """When the program is killed, its workers follow."""
    import subprocess
    import sys
    from pathlib import Path

    script, place = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(
        "import os, signal, sys, time\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "import s3_work\n"
        "from necrocode.concurrency import WorkerPool, WorkerPoolConfig\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(WorkerPoolConfig(executor='process', max_workers=1))\n"
        "    pool.submit_task('t', s3_work.sleep_with_a_child, (sys.argv[1],))\n"
        "    end = time.monotonic() + 60\n"
        "    while not (os.path.exists(sys.argv[1]) and open(sys.argv[1]).read()) and time.monotonic() < end:\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, str(script), str(place)], timeout=90, capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    until(lambda: all(is_gone(int(pid)) for pid in place.read_text().split()))


def test_a_program_without_a_main_guard_ends(tmp_path):
    """Each worker imports the program and so comes to make workers itself: those are refused, nobody waits for ever."""
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "import s3_work\n"
        "from necrocode.concurrency import WorkerPool, WorkerPoolConfig\n"
        "with WorkerPool(WorkerPoolConfig(executor='process', max_workers=1)) as pool:\n"
        "    result = pool.get_task_result(pool.submit_task('t', s3_work.double, (4,)))\n"
        "    print(__name__, result.result, result.error)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], timeout=90, capture_output=True, text=True)
    assert "__main__ 8 None" in ran.stdout and "no process can be started here" in ran.stdout, ran.stdout + ran.stderr


# What cannot travel


def test_a_closure_needs_cloudpickle():
    """S3-09 for processes: at submission, not later."""
    number = 5
    with pool_of() as pool:
        if HAS_CLOUDPICKLE:
            assert outcome(pool, lambda: number).result == 5
        else:
            with pytest.raises(Unfit, match="cannot go to another process") as caught:
                pool.submit_task("t", lambda: number)
            assert "cloudpickle" in caught.value.hint


def test_arguments_that_cannot_be_pickled(pool):
    with pytest.raises(Unfit):
        pool.submit_task("t", s3_work.double, (threading.Lock(),))


def test_a_result_that_cannot_be_pickled(pool):
    result = outcome(pool, s3_work.return_unpicklable)
    assert not result.success and "its result cannot be pickled" in str(result.error)


@pytest.mark.parametrize(
    ("function", "text"), [(s3_work.raise_one_way, "OneWay: 1 2"), (s3_work.raise_unpicklable, "holds a lambda")]
)
def test_exceptions_that_cannot_be_pickled(pool, function, text):
    """S3-16: what can be told of them is told, with the traceback as a note."""
    result = outcome(pool, function)
    assert text in str(result.error) and "its exception cannot be pickled" in str(result.error)
    assert function.__name__ in result.error.__cause__.__notes__[0]


def test_an_exception_travels_with_its_traceback(pool):
    """S3-16."""
    result = outcome(pool, s3_work.fail, "why")
    assert type(result.error.__cause__) is ValueError and str(result.error.__cause__) == "why"
    assert "in fail" in result.error.__cause__.__notes__[0]


def test_a_listening_process_ends_by_itself(pool):
    """check_timeout works there too."""
    with pool_of(task_timeout_seconds=0.5) as own:
        result = outcome(own, s3_work.checks)
        assert isinstance(result.error, TimeoutError)


def test_a_task_that_leaves_python(pool):
    assert isinstance(outcome(pool, s3_work.exit_python).error.__cause__, SystemExit)
    assert outcome(pool, s3_work.double, 1).result == 2


def test_no_mark_is_left():
    assert marked(f"worker-{os.getpid()}") == []
