"""The runner: a process that carries attempts one after another, and survives whoever launched it.

`python -m necrocode.runner STATE_DIR` takes the folder of an attempt from each line of its input (a JSON string)
and says on its output what happens to it. When its launcher dies it finishes the attempt under way, and ends.
An attempt that had to wait for strangers begins its work when the launcher says `true`: others may work meanwhile.
SIGTERM ends the attempt under way and then the runner.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from necrocode import process, scratch
from necrocode.attempt import carry
from necrocode.errors import LeaseLost, NecrocodeError, StateUnusable, advice, advised, described
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, take, write_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import read_json

_BRIEF = ("granted", "prepare")
"""Phases that are over at once where there is no workspace to prepare: they are told with the one after them."""
_AGAIN = 0.2
"""Seconds until a launcher hears that no runner could be started, and asks for another."""


class _Interrupted(BaseException):
    """Raised into a wait by SIGTERM."""


class Process:
    """One runner process: attempt folders come in as lines, what happens to them goes out as JSON lines."""

    def __init__(self, state_dir: str, output: int) -> None:
        self._ledger = FileLedger(state_dir)
        self._output = output
        self._unsaid = b""
        self._stop: process.Stop | None = None
        self._waiting = self._leaving = False

    def serve(self, lines: Iterator[str], *, introduced: bool = True) -> None:
        """Carry what comes. Without being `introduced` to the launcher by whoever started us, first say who we are."""
        self._lines = lines
        signal.signal(signal.SIGTERM, self._on_term)
        # The terminal's Ctrl-C is the launcher's business. Not SIG_IGN, which every agent would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        if not introduced:
            facts = {"said": "born", "pid": os.getpid(), "ticks": process.identity().start_ticks}
            self._unsaid = json.dumps(facts).encode() + b"\n"
            self._speak()
        for line in lines:
            self._serve_one(Path(json.loads(line)))
            if self._leaving:
                break
        scratch.remove(scratch.place_of_process(process.identity()))

    def _serve_one(self, folder: Path) -> None:
        self._stop = process.Stop()
        try:
            what, facts = self._carry(folder, self._stop)
        finally:
            stop, self._stop, self._waiting = self._stop, None, False
            stop.close()
        self._unsaid += _line(folder, what, **facts, **({"leaving": "yes"} if self._leaving else {}))
        self._speak()

    def _carry(self, folder: Path, stop: process.Stop) -> tuple[str, dict[str, str]]:
        """The last thing to say about an attempt. Only when that is "done" its result is on the disk."""
        try:
            if not take(folder):
                return "refused", {"error": "somebody else has taken this attempt"}
            order = Order.from_dict(read_json(folder / "task.json"))
            told = partial(self._on_phase, folder, order.mode == "none" and not order.setup)
            try:
                outcome = carry(order._replace(alone=True), self._ledger, stop=stop, told=told)
            except _Interrupted:
                outcome = self._interrupted(order)
            write_result(folder, outcome)
            return "done", {"status": str(outcome.status)}
        except StateUnusable as error:
            return "unusable", {"path": error.path, "reason": error.reason, "hint": error.hint}
        except OSError as error:
            why = advice(error)
            return "broken", {"error": f"{described(error)} ({why})" if why else described(error)}
        except (NecrocodeError, KeyError, TypeError) as error:
            return "broken", {"error": advised(error) if isinstance(error, NecrocodeError) else repr(error)}

    def _interrupted(self, order: Order) -> Outcome:
        self._waiting = False
        if lease := self._ledger.find(order.runner_id):  # the grant came at the same moment
            with suppress(LeaseLost):
                self._ledger.release(lease)
        told = ("stopped while waiting", "stopped")
        return Outcome(order.task.id, Status.CANCELLED, order.attempt, *told, runner_id=order.runner_id)

    def _on_phase(self, folder: Path, is_brief: bool, phase: str, detail: str = "") -> None:
        has_waited, self._waiting = self._waiting, phase == "waiting"
        self._unsaid += _line(folder, phase, **({"detail": detail} if detail else {}))
        if has_waited or not (is_brief and phase in _BRIEF):
            self._speak()
        if phase == "granted" and has_waited:
            self._waiting = True
        if self._waiting and self._leaving:
            raise _Interrupted
        if phase == "granted" and has_waited:
            next(self._lines, "")  # or the end of them: without a launcher there is nobody to wait for
            self._waiting = False

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._leaving = True
        if self._stop is None:
            scratch.remove(scratch.place_of_process(process.identity()))
            os._exit(0)  # nothing is under way; what may have been handed over just now, another will carry
        self._stop.set()
        if self._waiting:
            self._waiting = False
            raise _Interrupted

    def _speak(self) -> None:
        """Say what is not said yet; each time, the launcher wakes."""
        words, self._unsaid = self._unsaid, b""
        # Whoever launched us may be gone; the result is on the disk all the same.
        with suppress(BrokenPipeError):
            while words:
                words = words[os.write(self._output, words) :]


def _line(folder: Path, what: str, **facts: str) -> bytes:
    return json.dumps({"folder": str(folder), "said": what, **facts}).encode() + b"\n"


def main() -> None:
    # Nothing else that is printed here may get between the lines for the launcher.
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if sys.argv[2:] == ["--nursery"]:
        _bear(sys.argv[1], socket.socket(fileno=os.dup(0)))
    else:
        _serve(sys.argv[1], output)
    os._exit(0)


def _serve(root: str, output: int, *, introduced: bool = True) -> None:
    try:
        Process(root, output).serve(iter(os.fdopen(0, closefd=False).readline, ""), introduced=introduced)
    except StateUnusable as error:
        sys.exit(f"necrocode: {error}")
    sys.stderr.flush()


def _bear(root: str, requests: socket.socket) -> None:
    """Fork a runner for each pair of pipes that is sent to us, and stay until the last of them has ended."""
    process.warm()  # here and once, not in each of them
    gc.freeze()  # what is never looked at again is never copied
    gc.set_threshold(20_000)
    signal.signal(signal.SIGCHLD, _bury)
    while True:
        _, pipes, _, _ = socket.recv_fds(requests, 1, 2)
        if len(pipes) < 2:
            break
        try:
            is_child = os.fork() == 0
        except OSError as error:
            sys.stderr.write(f"necrocode: no runner can be started: {error.strerror}\n")
            time.sleep(_AGAIN)
            is_child = False
        if is_child:
            _born(root, requests, *pipes)
        for pipe in pipes:
            os.close(pipe)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _bury(number: int, frame: FrameType | None) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _born(root: str, requests: socket.socket, source: int, output: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    requests.close()
    os.dup2(source, 0)
    os.close(source)
    os.set_inheritable(output, False)
    _serve(root, output, introduced=False)
    os._exit(0)


if __name__ == "__main__":
    main()
