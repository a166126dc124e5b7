"""The heartbeat: a thread that renews one lease, and tells when it is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from necrocode.errors import LeaseLost, NecrocodeError
from necrocode.lease import Lease
from necrocode.ledger.operations import Operations


class Heartbeat:
    """Renews `lease` every `interval` seconds while its body runs; a context manager.

    When the lease is lost, `lost` says how and `on_lost` is called once, from the heartbeat's own thread.
    `on_beat` is called after every renewal, for looks that want a rhythm (resource samples)."""

    def __init__(
        self,
        ledger: Operations,
        lease: Lease,
        interval: float = 5.0,
        *,
        on_lost: Callable[[LeaseLost], None] | None = None,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        self._ledger, self._lease, self._interval = ledger, lease, interval
        self._on_lost, self._on_beat = on_lost, on_beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{lease.runner_id}", daemon=True)
        self.lost: LeaseLost | None = None

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No more beats after this returns."""
        self._over.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def check(self) -> None:
        """Raise the LeaseLost that ended this heartbeat, if any."""
        if self.lost:
            raise self.lost

    def _beat(self) -> None:
        while not self._over.wait(self._interval):
            try:
                self._ledger.renew(self._lease)
            except LeaseLost as lost:
                self.lost = lost
                if self._on_lost:
                    self._on_lost(lost)
                return
            except NecrocodeError:
                # A disk that cannot be asked proves nothing; the work goes on, the next beat asks again.
                continue
            if self._on_beat:
                self._on_beat()
