"""What an agent's process tree uses, looked at while it runs, and what happens when it is too much."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from necrocode.process import Sampler
from necrocode.work import StopSign

logger = logging.getLogger(__name__)


class ResourceMonitor:
    """Ends the tree through `stop` when it takes more than `max_memory_mb` (2**20 bytes each); warns once when it
    uses more than `max_cpu_percent` of one core. Looks every `monitoring_interval` seconds; a context manager.

    `exceeded` says afterwards why it was ended, "" when it was not."""

    def __init__(
        self,
        marker: str,
        stop: StopSign,
        max_memory_mb: int | None = None,
        max_cpu_percent: int | None = None,
        monitoring_interval: float = 1.0,
    ) -> None:
        self.max_memory_mb, self.max_cpu_percent, self.monitoring_interval = (
            max_memory_mb, max_cpu_percent, monitoring_interval,
        )  # fmt: skip
        self.exceeded = ""
        self._marker, self._stop = marker, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"monitor-{marker}", daemon=True)

    def __enter__(self) -> ResourceMonitor:
        if self.max_memory_mb or self.max_cpu_percent:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        sampler, warned = Sampler(self._marker), False
        while not self._over.wait(self.monitoring_interval):
            seen = sampler.look()
            if self.max_memory_mb and seen.memory_mb > self.max_memory_mb:
                self.exceeded = f"used {seen.memory_mb:.0f} MB, the limit is {self.max_memory_mb} MB"
                self._stop.set()
                return
            if self.max_cpu_percent and seen.cpu_percent > self.max_cpu_percent and not warned:
                logger.warning(
                    "%s uses %.0f %% cpu, expected at most %d", self._marker, seen.cpu_percent, self.max_cpu_percent
                )
                warned = True
