"""The journal: many writers, killed ones, torn lines, the change of day."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from necrocode import clock, journal
from necrocode.event import KINDS, Event

DAY = 86_400.0
NOON = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(journal.__file__).parents[1])}


def event(number: int = 0, at: float = NOON, **fixed: str) -> Event:
    return Event("task.queued", at, 1.5, **fixed, facts={"number": number})


def numbers(events: Any) -> list[int]:
    return [it.facts["number"] for it in events]


def test_an_event_is_made_of_now() -> None:
    before = clock.monotonic()
    made = journal.make("lease.granted", runner_id="r", token=4, waited=0.5)
    assert before <= made.mono <= clock.monotonic() and abs(made.at - clock.wall()) < 60
    assert (made.kind, made.runner_id, made.task_id, made.facts) == (
        "lease.granted",
        "r",
        "",
        {"token": 4, "waited": 0.5},
    )
    with pytest.raises(ValueError, match=r"lease\.borrowed"):
        journal.make("lease.borrowed")


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    told = [journal.make(kind, task_id="t", run_id="r", paths=["ä\n", "\udcff"]) for kind in KINDS]
    assert journal.append(tmp_path, told)
    assert journal.append(tmp_path, [])
    assert list(journal.read(tmp_path)) == [
        it._replace(at=round(it.at, 6), mono=round(it.mono, 6), facts=dict(it.facts)) for it in told
    ]
    files = list(tmp_path.iterdir())
    assert 1 <= len(files) <= 2  # at midnight
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(json.loads(line) for file in files for line in file.read_text().splitlines() if line)


def test_each_day_has_its_file(tmp_path: Path) -> None:
    midnight = NOON - NOON % DAY + DAY
    days = [event(0, midnight - 0.001), event(1, midnight), event(2, midnight + DAY)]
    assert journal.append(tmp_path, days)
    assert sorted(os.listdir(tmp_path)) == ["2027-01-15.jsonl", "2027-01-16.jsonl", "2027-01-17.jsonl"]
    assert numbers(journal.read(tmp_path)) == [0, 1, 2]
    assert numbers(journal.read(tmp_path, since=midnight)) == [1, 2]
    assert numbers(journal.read(tmp_path, since=midnight + 0.5)) == [2]


def test_days_are_those_of_utc(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from necrocode import journal; from necrocode.event import Event\n"
    code += "journal.append(Path(sys.argv[1]), [Event('task.queued', float(sys.argv[2]), 0.0)])"
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        subprocess.run([sys.executable, "-c", code, tmp_path, str(NOON)], env={**ENVIRONMENT, "TZ": zone}, check=True)
    assert os.listdir(tmp_path) == ["2027-01-15.jsonl"]


def test_filters(tmp_path: Path) -> None:
    journal.append(
        tmp_path, [event(1, task_id="a", run_id="r"), event(2, task_id="b", run_id="r"), event(3, run_id="s")]
    )
    assert numbers(journal.read(tmp_path, run_id="r")) == [1, 2]
    assert numbers(journal.read(tmp_path, run_id="r", task_id="b")) == [2]
    assert numbers(journal.read(tmp_path, number=3)) == [3]
    assert numbers(journal.read(tmp_path, kind="lease.granted")) == []
    assert numbers(journal.story(tmp_path, task_id="a")) == [1]
    assert numbers(journal.story(tmp_path, run_id="r", task_id="b")) == [2]


@pytest.mark.parametrize(
    "torn",
    [
        b'\n{"kind": "task.que', b"{", b"\0" * 4096, b"\xff\xfe\xfa", b"[" * 100_000, b"null\n", b"[]\n", b"3\n",
        b'{"kind":"x"}\n', b'{"kind":"x","at":"never","mono":0}\n', b"x" * (journal.LONGEST + 5), b"\n\n\r\n \n",
        b"y" * (2 * journal.LONGEST), b"z" * (journal.LONGEST - 1),
    ],
)  # fmt: skip
def test_what_is_torn_or_garbage_hurts_nobody_else(tmp_path: Path, torn: bytes) -> None:
    journal.append(tmp_path, [event(1)])
    (file,) = tmp_path.iterdir()
    with file.open("ab") as damaged:
        damaged.write(torn)
    journal.append(tmp_path, [event(2), event(3)])
    assert numbers(journal.read(tmp_path)) == [1, 2, 3]


def test_appending_never_raises(tmp_path: Path) -> None:
    assert not journal.append(tmp_path / "missing" / "events", [event()])
    (tmp_path / "2027-01-15.jsonl").symlink_to("/dev/full")
    assert not journal.append(tmp_path, [event()]), "links are not followed"
    (tmp_path / "2027-01-15.jsonl").unlink()
    os.mkfifo(tmp_path / "2027-01-15.jsonl")
    assert not journal.append(tmp_path, [event()]), "nor is anybody waited for"
    assert list(journal.read(tmp_path)) == []
    assert list(journal.read(tmp_path / "missing")) == []


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for turn in range(3):
        assert journal.append(tmp_path / "events", [event(turn)])
        assert numbers(journal.read(tmp_path / "events")) == [turn]
        assert (tmp_path / "events").stat().st_mode & 0o7777 == 0o700
        shutil.rmtree(tmp_path / "events")


def test_a_group_tells_into_one_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    mask = os.umask(0o077)
    try:
        assert journal.append(tmp_path / "events", [event()])
    finally:
        os.umask(mask)
    (file,) = (tmp_path / "events").iterdir()
    assert (file.parent.stat().st_mode & 0o7777, file.stat().st_mode & 0o777) == (0o2770, 0o660)


def test_a_full_disk_is_told_as_false(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from pathlib import Path
from necrocode import journal
from necrocode.event import Event
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
events = [Event("task.queued", {NOON}, 0.0, facts={{"number": n}}) for n in range(3)]
assert [journal.append(Path({str(tmp_path)!r}), [it]) for it in events] == [True, False, False]
"""
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)
    assert journal.append(tmp_path, [event(9)])
    assert numbers(journal.read(tmp_path)) == [0, 9]


WRITER = """
import sys
from pathlib import Path
from necrocode import journal
from necrocode.event import Event
place, writer, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    facts = {"number": number, "more": "x" * (number % 3000)}
    assert journal.append(place, [Event("task.queued", float(sys.argv[4]), 0.0, writer, facts=facts)])
    if number == 0:
        print("begun", flush=True)
"""


def writer(place: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", WRITER, place, name, str(count), str(NOON)]
    return subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE)


def test_many_processes_append_at_once(tmp_path: Path) -> None:
    writers = [writer(tmp_path, f"w{number}", 500) for number in range(6)]
    assert [it.communicate() and it.returncode for it in writers] == [0] * 6
    for number in range(6):
        assert numbers(journal.read(tmp_path, runner_id=f"w{number}")) == list(range(500))


def test_killed_in_the_middle_of_appending(tmp_path: Path) -> None:
    steady = writer(tmp_path, "steady", 3000)
    for number in range(8):
        killed = writer(tmp_path, f"k{number}", 1_000_000)
        assert killed.stdout and killed.stdout.readline() == b"begun\n"
        time.sleep(number * 0.004)  # not awaited: a moment of its own for each
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert steady.communicate() and steady.returncode == 0
    told: dict[str, list[int]] = {}
    for it in journal.read(tmp_path):
        told.setdefault(it.runner_id, []).append(it.facts["number"])
    assert told.pop("steady") == list(range(3000))
    assert len(told) == 8
    for heard in told.values():
        assert heard == list(range(len(heard)))


def test_following(tmp_path: Path) -> None:
    journal.append(tmp_path, [event(0)])
    heard: list[int] = []
    stop, started = threading.Event(), threading.Event()

    def stopped() -> bool:
        started.set()
        return stop.is_set()

    def listen() -> None:
        heard.extend(numbers(journal.follow(tmp_path, stopped, every=0.01)))

    listener = threading.Thread(target=listen)
    listener.start()
    assert started.wait(20)
    journal.append(tmp_path, [event(1), event(2)])
    with (tmp_path / "2027-01-15.jsonl").open("ab", buffering=0) as file:
        line = b'\n{"kind":"task.queued","at":1800000000.0,"mono":0,"number":3}'
        file.write(line[:30])
        time.sleep(0.05)  # not awaited: shows that half a line is not taken for one
        file.write(line[30:] + b"\n")
    journal.append(tmp_path, [event(4, NOON + DAY)])
    journal.append(tmp_path, [event(5, NOON)])
    stop.set()
    listener.join(20)
    assert sorted(heard) == [1, 2, 3, 4, 5]


def test_following_nothing_ends_when_told(tmp_path: Path) -> None:
    assert list(journal.follow(tmp_path / "missing", lambda: True)) == []


def test_following_a_file_that_was_cut_short(tmp_path: Path) -> None:
    journal.append(tmp_path, [event(number) for number in range(9)])

    def replace() -> bool:
        os.truncate(tmp_path / "2027-01-15.jsonl", 0)
        return not journal.append(tmp_path, [event(10)])

    followed = journal.follow(tmp_path, replace)
    assert numbers([next(followed)]) == [10]
    followed.close()
