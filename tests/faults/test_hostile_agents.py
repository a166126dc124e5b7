"""Agents that do not want to end, all at once under one launcher: when it has been cancelled, none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from proofs import Proof

from necrocode.testing import wait_for

ROOT = Path(__file__).resolve().parents[2]
AGENT = Path(__file__).with_name("hostile_agent.py")
GRACE = 0.5
AGENTS = (
    "deaf", "masked", "daemon deaf", "orphan", "session deaf", "group masked", "again", "storm", "tree deaf", "stopped",
    "stops_all deaf", "closed deaf", "daemon closed deaf", "cleared", "forged", "renamed daemon deaf",
    "adopts daemon daemon deaf", "elsewhere orphan session deaf closed", "loud deaf", "shell again",
)  # fmt: skip
FIRST = {"storm": 200, "tree deaf": 32}
"""How many processes say that they are there; of the others, one does at least."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def survivors(token: str) -> dict[int, str]:
    """Whoever bears the token in the command line and is no zombie."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            argv = Path("/proc", pid, "cmdline").read_bytes()
            state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if (
            token.encode() in argv
            and b"hostile_agent" in argv.replace(b"sleep", b"hostile_agent")
            and state not in "ZX"
        ):
            found[int(pid)] = argv.replace(b"\0", b" ").decode(errors="replace")
    return found


def test_twenty_at_once_are_ended(tmp_path: Path, state_root: Path, proof: Proof) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    tasks = [
        {"id": f"h{at}", "command": [sys.executable, str(AGENT), str(ready / f"h{at}"), *traits.split()]}
        for at, traits in enumerate(AGENTS)
    ]
    (tmp_path / "tasks.json").write_text(json.dumps({"task": tasks}))
    argv = ["-m", "necrocode", "--state-dir", str(state_root), "run", "tasks.json", "-n", str(len(AGENTS))]
    options = ["--workspace", "none", "--grace", str(GRACE)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "said", "wb") as said:
        launcher = subprocess.Popen([sys.executable, *argv, *options], cwd=tmp_path, env=env, stdout=said, stderr=said)
    try:
        wanted = {f"h{at}": FIRST.get(traits, 1) for at, traits in enumerate(AGENTS)}
        wait_for(lambda: all(_there(ready, name) >= count for name, count in wanted.items()), 60.0,
                 told=lambda: (sorted(os.listdir(ready)), (tmp_path / "said").read_text()))  # fmt: skip
        assert len(survivors(str(ready))) > 240
        launcher.send_signal(signal.SIGINT)  # the first one: nothing new is begun
        wait_for(lambda: b"interrupted" in (tmp_path / "said").read_bytes(), 30.0)
        began = time.monotonic()
        launcher.send_signal(signal.SIGINT)  # the second: what runs is ended
        launcher.wait(60)
        seconds = time.monotonic() - began
        left = survivors(str(ready))
        assert not left, left
        assert launcher.returncode == 130, (tmp_path / "said").read_text()
        assert os.listdir(state_root / "runners") == []
        proof("Q9", len(AGENTS))
        print(f"all gone {seconds:.2f} s after the cancel, of which {GRACE} s were grace")
    finally:
        launcher.kill()
        launcher.wait()
        for pid in survivors(str(ready)):
            os.kill(pid, signal.SIGKILL)


def _there(ready: Path, name: str) -> int:
    return sum(one.startswith(f"{name}.") for one in os.listdir(ready))
