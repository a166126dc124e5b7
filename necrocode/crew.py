"""The crew: the runner processes of one run as its launcher has them, and the attempts that they carry."""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import scratch
from necrocode.clock import monotonic
from necrocode.hand import Hand
from necrocode.lease import Identity
from necrocode.nursery import Nursery
from necrocode.process.who import send
from necrocode.statedir import StateDir

ADOPTED_LOOK = 0.2
"""Seconds between looks at attempts that an earlier launcher began: nobody tells us of them."""
_DISMISSAL = 5.0
"""Seconds in which runners that have nothing to do must have ended."""
_BIRTH = 60.0
"""Seconds in which a runner says who it is; then the nursery is taken for stopped, and another takes its place."""


class Running(NamedTuple):
    """An attempt under way: its folder, and who carries it (None when it was adopted from an earlier launcher)."""

    folder: Path
    runner_id: str
    hand: Hand | None


class Crew:
    """The attempts under way by task id, in `running`; runners are started as they are needed, and used again."""

    def __init__(self, state: StateDir, log: Path) -> None:
        self.running: dict[str, Running] = {}
        self._nursery = Nursery(state, log)
        self._tasks: dict[Path, str] = {}
        self._hands: list[Hand] = []
        self._selector = selectors.DefaultSelector()
        self._wake: tuple[int, int] | None = None

    @contextmanager
    def assembled(self, is_over: Callable[[], bool]) -> Iterator[None]:
        """While its body runs, `wake` ends a sleep. Afterwards the runners are dismissed: those that are idle have
        ended then, those that are not go on without us."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with self._selector:
            self._selector.register(read_end, selectors.EVENT_READ)
            self._wake = read_end, write_end
            try:
                yield
            finally:
                self._wake = None
                os.close(read_end)
                os.close(write_end)
                self._dismiss(is_over())

    def _dismiss(self, is_over: bool) -> None:
        for hand in self._hands:
            hand.dismiss()
        until = monotonic() + (_DISMISSAL if is_over else 0.0)
        for hand in self._hands:
            hand.close(max(0.0, until - monotonic()))
            if is_over and hand.gone:
                _clear_after(hand)
        self._nursery.close(max(0.0, until - monotonic()))

    def wake(self) -> None:
        """End the sleep of `listen`. Safe to call from a signal handler, at any time."""
        if self._wake:
            with suppress(BlockingIOError):
                os.write(self._wake[1], b"!")

    def begin(self, task_id: str, folder: Path, runner_id: str) -> None:
        """Hand an attempt, whose task.json is written, to a runner."""
        self._enter(task_id, Running(folder, runner_id, self._given(folder)))

    def adopt(self, task_id: str, folder: Path, runner_id: str) -> None:
        """Take note of an attempt that somebody else's runner carries, or nobody."""
        self._enter(task_id, Running(folder, runner_id, None))

    def _enter(self, task_id: str, running: Running) -> None:
        self.running[task_id], self._tasks[running.folder] = running, task_id

    def _given(self, folder: Path) -> Hand:
        hand = next((hand for hand in self._hands if hand.idle), None)
        if hand is None:
            hand = Hand(self._nursery)
            self._hands.append(hand)
            self._selector.register(hand.output, selectors.EVENT_READ, hand)
        hand.carry(folder)
        return hand

    def go_on(self, task_id: str) -> None:
        """Let an attempt begin its work that had to wait for strangers."""
        if hand := self.running[task_id].hand:
            hand.go_on()

    def stop(self, task_id: str, carrier: Identity | None) -> None:
        """Ask the runner of an attempt to end it; `carrier` is that of one that was adopted."""
        running = self.running[task_id]
        if running.hand:
            running.hand.stop()
        elif carrier:
            send(carrier.pid, carrier.start_ticks, signal.SIGTERM)

    def end(self, task_id: str) -> Path:
        """An attempt is over: forget it; its folder."""
        folder = self.running.pop(task_id).folder
        del self._tasks[folder]
        return folder

    @property
    def adopted(self) -> list[str]:
        """The tasks whose runners cannot be heard."""
        return [task_id for task_id, running in self.running.items() if running.hand is None]

    def listen(self, timeout: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Sleep until something is said, or so many seconds: task id and what its runner says of it. `gone` is what
        nobody says: the runner has died. The id is "" for a `wake`."""
        self._hurry_births()
        if self.adopted:
            timeout = min(ADOPTED_LOOK, ADOPTED_LOOK if timeout is None else timeout)
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with suppress(BlockingIOError):
                    os.read(key.fd, 64)
                yield "", {}
            else:
                yield from self._heard(key.data)

    def _hurry_births(self) -> None:
        """Without its nursery, a runner that was not born ends without a word, and its attempt goes to another."""
        now = monotonic()
        overdue = [hand for hand in self._hands if hand.who is None and now - hand.wanted > _BIRTH]
        for hand in overdue:
            hand.wanted = now
        if overdue:
            self._nursery.kill()

    def _heard(self, hand: Hand) -> Iterator[tuple[str, dict[str, Any]]]:
        for said in hand.heard():
            task_id = self._tasks.get(Path(said["folder"]))
            if task_id is not None:
                yield task_id, said
        if hand.gone:
            self._selector.unregister(hand.output)
            self._hands.remove(hand)
            hand.close()
            for task_id in [task_id for task_id, running in self.running.items() if running.hand is hand]:
                yield task_id, {"said": "gone"}
            _clear_after(hand)


def _clear_after(hand: Hand) -> None:
    """Killed, a runner could not do this itself; what it carried has been seen to."""
    if hand.who:
        scratch.remove(scratch.place_of_process(hand.who))
