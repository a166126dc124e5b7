"""aside.py: folders for a moment, and those of processes that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from necrocode import aside

PROJECT = Path(__file__).parents[2]
HOLD = "import sys, time\nfrom necrocode import aside\nwith aside.folder() as place:\n    (place / 'x').touch()\n"
MANY = f"""\
import os, random, signal
from necrocode import aside
for at in range(8):
    if os.fork() == 0:
        for turn in range(60):
            with aside.folder() as place:
                (place / "mine").write_text(str(os.getpid()))
                if random.random() < 0.05:
                    os.kill(os.getpid(), signal.SIGKILL)
                assert (place / "mine").read_text() == str(os.getpid())
        os._exit(0)
codes = [os.wait()[1] for at in range(8)]
assert set(codes) <= {{0, {int(signal.SIGKILL)}}}, codes
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def run(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def test_it_is_there_for_the_moment_and_nothing_stays(temporary: Path) -> None:
    with aside.folder() as one, aside.folder() as other:
        (one / "sub").mkdir()
        (one / "sub" / "file").touch()
        assert one != other
        assert one.parent.stat().st_mode & 0o777 == one.stat().st_mode & 0o777 == 0o700
    assert os.listdir(temporary) == []


def test_what_a_killed_process_left_goes_with_the_next(temporary: Path) -> None:
    with run(f"{HOLD}    print(place, flush=True)\n    time.sleep(60)\n") as holder:
        assert holder.stdout
        left = Path(holder.stdout.readline().strip())
        with aside.folder():
            assert (left / "x").exists()  # its holder lives
        assert (left / "x").exists()
        holder.kill()
        holder.wait()
    with aside.folder():
        assert not left.exists()
    assert os.listdir(temporary) == []


def test_a_place_that_others_may_write_to_is_not_used(temporary: Path) -> None:
    planted = temporary / f"necrocode-{os.geteuid()}.aside"
    planted.mkdir()
    planted.chmod(0o777)
    with aside.folder() as place:
        assert place.parent == temporary
    assert os.listdir(planted) == []


def test_many_at_once_some_of_them_killed(temporary: Path) -> None:
    with run(MANY) as all_of_them:
        assert all_of_them.wait(60) == 0
    with aside.folder():
        pass
    assert os.listdir(temporary) == []
