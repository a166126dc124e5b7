"""The vigil over attempts of which nothing is heard: their runner may have been stopped, and say no more.

Such a runner does not die, so nobody tells its launcher. Its lease is revoked once it has been silent for longer
than the lease allows; then the attempt is lost, and the runner, should it ever wake, finds that out and ends. It
keeps workspace and branch for that long, so it is killed when it has not woken after as long again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from necrocode import process
from necrocode.clock import monotonic
from necrocode.errors import NecrocodeError, StateUnreadable
from necrocode.lease import Identity
from necrocode.ledger import lifeline
from necrocode.ledger.files import FileLedger
from necrocode.ledger.records import runner_of
from necrocode.order import put_aside, taken_by
from necrocode.statedir import StateDir, told

_LOOK = 5.0
"""Seconds between two looks, at most."""
_MUTE = 60.0
"""Seconds, at least, until a runner that has neither asked for a lease nor given one back is taken for stopped."""
_HURRY = 1.0
"""Seconds that a sweep waits for the gate; when it stays shut, the next look will do."""


class Vigil:
    """Looks after attempts by their runner ids and folders. `timeout` is what their leases allow, `patience` what a
    runner has to end after its lease was revoked, in seconds."""

    def __init__(self, ledger: FileLedger, timeout: float, patience: float) -> None:
        self._ledger, self._timeout, self._patience = ledger, timeout, patience
        self._every = min(_LOOK, timeout / 4)
        self._next = monotonic() + self._every
        self._since: dict[str, float] = {}
        self._condemned: dict[str, tuple[Path, float]] = {}

    def pause(self) -> float:
        """Seconds until the next look is due."""
        return max(0.0, self._next - monotonic())

    def lost(self, under_way: Mapping[str, Path]) -> Iterator[str]:
        """The runner ids of those attempts that are lost although their runner lives, each once; when a look is due.

        A runner that is mute from its beginning, as the launcher hears it, is killed, so that its end is heard."""
        now = monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        self._kill_condemned(now)
        silent = [one for one in under_way if self._is_silent(one, now)]
        if silent and not self._revoked() >= set(silent):
            with suppress(NecrocodeError):
                self._ledger.sweep(patience=_HURRY)
        for runner_id in self._revoked().intersection(silent):
            self._condemned[runner_id] = under_way[runner_id], now + self._patience
            yield runner_id
        self._kill_mute(under_way, now)

    def is_over(self, folder: Path, runner_id: str) -> bool:
        """Whether who carries an attempt has ended."""
        return is_gone(self._ledger.state, self.carrier(folder, runner_id), runner_id)

    def carrier(self, folder: Path, runner_id: str) -> Identity | None:
        """Who took an attempt; where that cannot be read, whom its lease names. What cannot be read is put aside."""
        carrier = None
        try:
            carrier = taken_by(folder)
        except StateUnreadable as error:
            put_aside(self._ledger.state, folder.parent.name, error)
        seen = () if carrier else self._ledger.snapshot().runners
        return carrier or next((one.record.holder for one in seen if one.record.runner_id == runner_id), None)

    def _is_silent(self, runner_id: str, now: float) -> bool:
        seen = lifeline.look(self._ledger.state.live / runner_id, now)
        return seen.held and seen.silent is not None and seen.silent > self._timeout

    def _revoked(self) -> set[str]:
        with told(self._ledger.state.fenced):
            return {runner_of("fenced", name) for name in os.listdir(self._ledger.state.fenced)}

    def _kill_condemned(self, now: float) -> None:
        for runner_id, (folder, until) in list(self._condemned.items()):
            if not lifeline.is_held(self._ledger.state.live / runner_id):
                del self._condemned[runner_id]
            elif now >= until:
                _kill(folder)

    def _kill_mute(self, under_way: Mapping[str, Path], now: float) -> None:
        """Those that neither hold nor want a lease for as long as a lease may be silent, and have no result."""
        self._since = {one: self._since.get(one, now) for one in under_way}
        for runner_id, since in self._since.items():
            folder = under_way[runner_id]
            if now - since <= max(self._timeout, _MUTE) or lifeline.is_held(self._ledger.state.live / runner_id):
                continue
            if not (folder / "result.json").exists():
                _kill(folder)


def is_gone(state: StateDir, carrier: Identity | None, runner_id: str) -> bool:
    """Whether who carries an attempt has ended, as far as can be seen from here; None: nobody can tell any more who
    that is, and its lifeline has to."""
    ours = process.identity()
    if carrier and (carrier.boot_id, carrier.pid_namespace) == (ours.boot_id, ours.pid_namespace):
        return process.is_gone(carrier)
    return not lifeline.is_held(state.live / runner_id)


def _kill(folder: Path) -> None:
    with suppress(StateUnreadable):
        if carrier := taken_by(folder):
            process.kill_holder(carrier)
