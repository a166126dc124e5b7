"""A hand: one runner process of a fleet, as its launcher holds it."""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from necrocode.statedir import StateDir, told

ENDS = ("done", "broken", "refused", "unusable")
"""The last words of a runner about an attempt."""
_left: list[subprocess.Popen[bytes]] = []
"""Runners that went on without us; kept, so that nobody complains of children that were forgotten."""


class Hand:
    """A runner process: folders of attempts go in, lines about them come out. It survives us.

    `idle`: it may be given an attempt. `gone`: it has said its last. `proven`: it has said anything at all."""

    def __init__(self, state: StateDir, log: Path) -> None:
        argv, where = _command(str(state.root))
        with told(log), log.open("ab") as errors:
            self._process = subprocess.Popen(
                argv, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._rest = b""
        self.idle = True
        self.gone = self.proven = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def carry(self, folder: Path) -> None:
        """Hand over an attempt. A runner that is no more is noticed when its output ends."""
        assert self._process.stdin is not None
        self.idle = False
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(str(folder)).encode() + b"\n")

    def go_on(self) -> None:
        """Let an attempt begin its work that had to wait for strangers."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"true\n")

    def heard(self) -> Iterator[dict[str, Any]]:
        """What it said since we last listened; `gone` is set when it will say no more."""
        data = os.read(self.output, 1 << 16)
        self.gone = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.proven = True
            self.idle = said["said"] in ENDS and "leaving" not in said
            yield said

    def stop(self) -> None:
        """Ask it to end what it carries, and then itself."""
        self.idle = False
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def dismiss(self) -> None:
        """No more attempts: an idle runner ends, a busy one ends after its attempt."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def close(self, patience: float | None = None) -> None:
        """Let the system forget it once it has ended, which is waited for at most `patience` seconds."""
        self.dismiss()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            _left.append(self._process)


def _command(root: str) -> tuple[list[str], str | None]:
    """How a runner is started, and in which directory: with this very package, and with nothing that lies in the
    current directory in front of the standard library."""
    home = str(Path(__file__).resolve().parent.parent)
    known = [*site.getsitepackages(), site.getusersitepackages(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    argv = ["-m", "necrocode.runner", root]
    if home in map(os.path.realpath, filter(None, known)):
        return [sys.executable, "-P", *argv], None
    return [sys.executable, *argv], home
