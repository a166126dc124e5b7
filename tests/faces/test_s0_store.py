"""S0: reports that survive a crash, and that several processes share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from s0_bench import Echo, Plain

from necrocode.benchmark import AdaptiveQueue, BenchmarkCallback, ReportStore, Task, TaskProtocol
from necrocode.errors import ConfigError, StateUnusable

HERE = Path(__file__).parent


def ask(name, **environment):
    return Task(query=f"q {name}", id=name, environment_data=environment)


def until(fact, within=60.0):
    end = time.monotonic() + within
    while not fact():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def lines(path):
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(f"import sys\nsys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]\n{text}")
    return path


def test_reports_are_written_as_they_come(tmp_path):
    """Each is on the disk before the next task starts: one JSON line in a file of its own."""
    seen = []

    class Look(BenchmarkCallback):
        def on_task_repeat_start(self, benchmark, task, repeat_idx):
            seen.append(len(list((tmp_path / "store" / "reports").iterdir())))

    reports = Echo(callbacks=[Look()]).run([ask("a"), ask("b"), ask("c")], store=tmp_path / "store")
    assert seen == [0, 1, 2]
    text = (tmp_path / "store" / "reports" / "a.0.json").read_text()
    assert text.count("\n") == 1 and json.loads(text)["status"] == reports[0]["status"] == "success"
    assert [report["task_id"] for report in ReportStore(tmp_path / "store").reports()] == ["a", "b", "c"]


def test_what_is_done_is_not_done_again(tmp_path):
    """A resumed run has all reports, and runs only what is missing; the queue learns of the old ones too."""
    log, heard = tmp_path / "log", []

    class Hears(AdaptiveQueue):
        def _update_state(self, task, report):
            heard.append(task.id)

    tasks = [ask(name, log=str(log)) for name in "abc"]
    Plain().run(tasks[:2], store=tmp_path / "store")
    reports = Plain().run(queue=Hears(tasks), store=ReportStore(tmp_path / "store"))
    assert lines(log) == ["a", "b", "c"]
    assert [report["task_id"] for report in reports] == heard == ["a", "b", "c"]


def test_infrastructure_failures_are_done_again(tmp_path):
    """A task's own failure counts as done, that of the machine does not."""
    log = tmp_path / "log"
    tasks = [ask("memory", log=str(log), **{"raise": "memory"}), ask("agent", log=str(log), **{"raise": "agent"})]
    for _ in range(2):
        reports = Plain().run(tasks, store=tmp_path / "store")
        assert [it["status"] for it in reports] == ["infrastructure_error", "agent_error"]
    assert Counter(lines(log)) == {"memory": 2, "agent": 1}


def test_killed_and_resumed(tmp_path):
    """kill -9 in the middle: what had its report keeps it, what was under way is done again, nothing is lost."""
    log, store, hold = tmp_path / "log", tmp_path / "store", tmp_path / "hold"
    path = script(
        tmp_path,
        "from s0_bench import Plain\n"
        "from necrocode.benchmark import Task\n"
        f"told = {{'log': {str(log)!r}}}\n"
        f"held = {{**told, 'hold': {str(hold)!r}}}\n"
        "tasks = [Task('q', id=f't{n}', environment_data=held if n in (3, 4) else told) for n in range(8)]\n"
        f"Plain().run(tasks, store={str(store)!r}, max_workers=2)\n",
    )
    child = subprocess.Popen([sys.executable, str(path)])
    try:
        until(lambda: {"t3", "t4"} <= set(lines(log)))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    assert {path.name for path in (store / "reports").iterdir()} == {"t0.0.json", "t1.0.json", "t2.0.json"}
    hold.touch()
    ran = subprocess.run([sys.executable, str(path)], timeout=60, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(list((store / "reports").iterdir())) == 8
    assert Counter(lines(log)) == {**{f"t{n}": 1 for n in range(8)}, "t3": 2, "t4": 2}


def test_several_processes_share_the_work(tmp_path):
    """Three processes, one store: each repetition once, and each process has all reports at the end."""
    log, store = tmp_path / "log", tmp_path / "store"
    path = script(
        tmp_path,
        "from s0_bench import Plain\n"
        "from necrocode.benchmark import Task\n"
        f"told = {{'log': {str(log)!r}, 'sleep': 0.01}}\n"
        "tasks = [Task('q', id=f't{n}', environment_data=told) for n in range(30)]\n"
        f"reports = Plain().run(tasks, store={str(store)!r}, max_workers=2)\n"
        "print([report['task_id'] for report in reports] == [f't{n}' for n in range(30)])\n",
    )
    children = [subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [child.communicate(timeout=100)[0].strip() for child in children]
    assert said == ["True"] * 3
    assert Counter(lines(log)) == {f"t{n}": 1 for n in range(30)}


def test_what_another_process_leaves_is_taken_over(tmp_path):
    """A run waits for what a living process has, and does it itself when that one dies."""
    log, store, hold = tmp_path / "log", tmp_path / "store", tmp_path / "hold"
    path = script(
        tmp_path,
        "from s0_bench import Plain\n"
        "from necrocode.benchmark import Task\n"
        f"told = {{'log': {str(log)!r}, 'hold': {str(hold)!r}}}\n"
        f"Plain().run(Task('q', id='t', environment_data=told), store={str(store)!r})\n",
    )
    child = subprocess.Popen([sys.executable, str(path)])
    try:
        until(lambda: lines(log) == ["t"])
        reports = []
        ours = threading.Thread(
            target=lambda: reports.extend(Plain().run([ask("t", log=str(log)), ask("u", log=str(log))], store=store))
        )
        ours.start()
        until(lambda: "u" in lines(log))
        assert not reports and ours.is_alive()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    ours.join(60)
    assert [it["status"] for it in reports] == ["success"] * 2
    assert lines(log) == ["t", "u", "t"]


def test_a_raised_timeout_leaves_no_claim(tmp_path):
    """After the run was ended, the rest can be run at once."""
    from necrocode.benchmark import TaskTimeoutError, TimeoutAction

    tasks = [
        Task("q", id="a", environment_data={"work": 60}, protocol=TaskProtocol(0.05, TimeoutAction.RAISE)), ask("b")
    ]  # fmt: skip
    with pytest.raises(TaskTimeoutError):
        Echo().run(tasks, store=tmp_path / "store", max_workers=1)
    reports = Echo().run(tasks, store=tmp_path / "store")
    assert [it["status"] for it in reports] == ["task_timeout", "success"]


def test_random_ids_cannot_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match="id of its own"):
        Echo().run([Task("q")], store=tmp_path / "store")


def test_a_store_belongs_to_one_benchmark(tmp_path):
    Echo().run([ask("a")], store=tmp_path / "store")
    with pytest.raises(ConfigError, match="Echo"):
        Plain().run([ask("a")], store=tmp_path / "store")


@pytest.mark.parametrize("name", ["../../escape", ".", "a b*[x]?", "ü✓", "x" * 400, "a/b", "CON:"])
def test_any_id_is_a_file_name(name, tmp_path):
    store = ReportStore(tmp_path / "store")
    store.write({"task_id": name, "repeat_idx": 0, "status": "success"})
    assert store.read(name, 0)["task_id"] == name and store.read(name + "x", 0) is None
    assert len(list((tmp_path / "store" / "reports").iterdir())) == 1
    lease = store.claim(name, 0)
    assert store.claim(name, 0) is None
    store.give_back(lease)


def test_reports_that_json_has_no_word_for(tmp_path):
    """Kept as text; the run's own reports have them as they are."""
    circle: list = []
    circle.append(circle)
    store = ReportStore(tmp_path / "store")
    traces = {("a", 1): {1, 2}, "lock": threading.Lock(), "circle": circle, "nan": float("nan"), "bytes": b"x"}
    store.write({"task_id": "t", "repeat_idx": 0, "status": "success", "traces": traces})
    found = store.read("t", 0)["traces"]
    assert found["('a', 1)"] == [1, 2] and found["lock"].startswith("<unlocked") and found["bytes"] == "b'x'"


def test_a_damaged_report_is_no_report(tmp_path):
    """It is put aside, and the task is done again."""
    store = tmp_path / "store"
    Echo().run([ask("a")], store=store)
    (store / "reports" / "a.0.json").write_text('{"task_id": "a", ')
    assert [it["status"] for it in Echo().run([ask("a")], store=store)] == ["success"]
    assert len(list((store / "state" / "quarantine").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StateUnusable):
        ReportStore(tmp_path / "store")
    tmp_path.chmod(0o700)


def test_a_store_that_is_a_file(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(StateUnusable):
        ReportStore(tmp_path / "store")
