"""The command line under strace: its real system calls, in C too, killed at or answered with an error.

A sample of them in each run (all with NECROCODE_THOROUGH): `enumeration` and `small_files` do it exhaustively from
within. Afterwards the invariants hold, the next command works, and an error is told in one sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from proofs import THOROUGH, Proof, part, some

from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.testing import check

ROOT = Path(__file__).resolve().parents[2]
CALLS = ("openat", "write", "pwrite64", "rename", "unlink", "unlinkat", "mkdir", "mknodat", "link", "flock", "fsync",
         "ftruncate", "utimensat")  # fmt: skip
COMMANDS = {
    "config set": ("config", "set", "limit", "5"),
    "exec": ("exec", "--file", "a.py", "--", "true"),
    "gc": ("gc", "--yes"),
    "run": ("run", "tasks.json", "--workspace", "none"),
    "status": ("status",),
}
ERRORS = ("ENOSPC", "EIO", "EACCES")
SAMPLE = 6
"""Calls of each command that are taken, evenly spread, each killed and failed."""
TOLD = {0, 1, 2, 75, 124, 125, 126, 127}

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="not installed: strace (apt install strace)")


class Point(NamedTuple):
    """The `at`-th call of that name in the command's own process."""

    call: str
    at: int


class Line:
    """The command line in a fresh directory each time."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.count = tmp, 0
        (tmp / "tasks.json").write_text('{"task": [{"id": "t", "command": ["true"]}]}')
        if self.traced((), "version", root=tmp / "none").returncode:
            pytest.skip("strace may not trace here")

    def fresh(self) -> Path:
        self.count += 1
        root = self.tmp / f"state{self.count}"
        ledger = FileLedger(root)
        ledger.configure(limit=4)
        ledger.release(ledger.register(Request("before")))
        (root / "tmp" / "litter").touch()
        return root

    def traced(self, options: tuple[str, ...], *argv: str, root: Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(self.tmp)}
        words = [sys.executable, "-m", "necrocode", "--state-dir", str(root), *argv]
        strace = ["strace", "-qq", *(options or ("-o", os.devnull, "-e", "trace=none"))]
        return subprocess.run([*strace, *words], cwd=self.tmp, env=env, capture_output=True, text=True, timeout=60)

    def points(self, argv: tuple[str, ...]) -> list[Point]:
        """The calls that name something of the state directory, in order."""
        root, log = self.fresh(), self.tmp / "log"
        done = self.traced(("-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}"), *argv, root=root)
        assert done.returncode == 0, done.stderr
        counts: Counter[str] = Counter()
        found = []
        for line in log.read_text(errors="replace").splitlines():
            if match := re.match(r"(\w+)\(", line):
                counts[match[1]] += 1
                if str(root) in line:
                    found.append(Point(match[1], counts[match[1]]))
        return found


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


@pytest.mark.parametrize("name", some(COMMANDS))
def test_killed_or_refused_at_a_real_system_call(name: str, line: Line, proof: Proof) -> None:
    points = line.points(COMMANDS[name])
    assert len(points) > (3 if name == "status" else 15), points
    chosen = points if THOROUGH else part(points[:: max(1, len(points) // SAMPLE)])
    for number, point in enumerate(chosen):
        killed(line, name, point)
        refused(line, name, point, ERRORS[number % len(ERRORS)])
    proof("CLI", 2 * len(chosen))


def killed(line: Line, name: str, point: Point) -> None:
    root = line.fresh()
    injection = f"inject={point.call}:signal=KILL:when={point.at}"
    done = line.traced(("-o", os.devnull, "-e", injection), *COMMANDS[name], root=root)
    assert done.returncode in (-9, 137, 0), (point, done)
    goes_on(line, root, point)


def refused(line: Line, name: str, point: Point, error: str) -> None:
    root = line.fresh()
    injection = f"inject={point.call}:error={error}:when={point.at}"
    done = line.traced(("-o", os.devnull, "-e", injection), *COMMANDS[name], root=root)
    assert done.returncode in TOLD, (point, error, done)
    assert "should not have happened" not in done.stderr and "Traceback" not in done.stderr, (point, error, done.stderr)
    assert not done.returncode or "necrocode: " in done.stderr or done.stdout, (point, error, done)
    goes_on(line, root, point)


def goes_on(line: Line, root: Path, point: Point) -> None:
    assert check(root), point
    ledger = FileLedger(root)
    ledger.release(ledger.register(Request("after", limit=4), wait=True, timeout=30))
    ledger.sweep()
    assert check(root), point
