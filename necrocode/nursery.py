"""The nursery of a run: one process that has loaded all that a runner needs, and of which runners are forked.

A runner that starts by itself spends a tenth of a second of processor time on loading; a fork spends a hundredth of
that. The nursery carries nothing itself. It stays until the last of its runners has ended, and buries them.
"""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
from pathlib import Path

from necrocode.statedir import StateDir, told

_left: list[subprocess.Popen[bytes]] = []
"""Nurseries whose runners went on without us; kept, so that nobody complains of children that were forgotten."""


class Nursery:
    """Starts runners. What they have to complain of goes to `log`."""

    def __init__(self, state: StateDir, log: Path) -> None:
        self._root, self._log = str(state.root), log
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def bear(self) -> tuple[int, int]:
        """A new runner: the end of the pipe into which attempts go, and of that out of which its words come. It is
        not waited for; when none can be started, its output ends without a word. Raises StateUnusable."""
        with told(self._log):
            theirs_in, ours_in = os.pipe()
            ours_out, theirs_out = os.pipe()
        try:
            self._ask([theirs_in, theirs_out])
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return ours_in, ours_out

    def _ask(self, pipes: list[int]) -> None:
        for _ in range(2):  # one that was killed is replaced
            if self._requests is None:
                self._open()
            assert self._requests is not None
            try:
                socket.send_fds(self._requests, [b"!"], pipes)
                return
            except (BrokenPipeError, ConnectionError):
                self.close(0.0)

    def _open(self) -> None:
        argv, where = _command(self._root)
        self._requests, theirs = socket.socketpair()
        with told(self._log), theirs, open(self._log, "ab", opener=_private) as errors:
            self._process = subprocess.Popen(
                argv, cwd=where, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )

    def kill(self) -> None:
        """End it, and with it what it was asked for and has not done; its runners live. Another one will follow."""
        if self._process is not None:
            self._process.kill()

    def close(self, patience: float) -> None:
        """No more runners. It ends with the last of them, which is waited for at most `patience` seconds."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                _left.append(process)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _command(root: str) -> tuple[list[str], str | None]:
    """How a nursery is started, and in which directory: with this very package, and with nothing that lies in the
    current directory in front of the standard library."""
    home = str(Path(__file__).resolve().parent.parent)
    known = [*site.getsitepackages(), site.getusersitepackages(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    argv = ["-m", "necrocode.runner", root, "--nursery"]
    if home in map(os.path.realpath, filter(None, known)):
        return [sys.executable, "-P", *argv], None
    return [sys.executable, *argv], home
