"""Whoever wants to hear: functions, sync or async, that are brought everything in order and can harm nobody."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class Subscriber:
    """One function and what it has not heard yet; a task brings it, one after the other."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        if not callable(handler):
            raise TypeError(f"a subscriber is called with what happens, and {handler!r} cannot be")
        self.handler = handler
        self._unheard: deque[tuple[Any, ...] | asyncio.Future[None]] = deque()
        self._bringing: asyncio.Task[None] | None = None

    def tell(self, *given: Any) -> None:
        """Call it with this, as soon as the loop comes to it. Needs a running loop."""
        self._put(given)

    def heard(self) -> asyncio.Future[None]:
        """Done once it has heard all that it was told by now."""
        future = asyncio.get_running_loop().create_future()
        self._put(future)
        return future

    def stop(self) -> None:
        """Nothing more of what it was told, and end the call that it is in."""
        self._unheard.clear()
        if self._bringing is not None:
            self._bringing.cancel()

    def _put(self, item: tuple[Any, ...] | asyncio.Future[None]) -> None:
        self._unheard.append(item)
        if self._bringing is None or self._bringing.done():
            self._bringing = asyncio.get_running_loop().create_task(self._bring(), name="subscriber")

    async def _bring(self) -> None:
        while self._unheard:
            item = self._unheard.popleft()
            if isinstance(item, tuple):
                await hear(self.handler, *item)
            elif not item.done():
                item.set_result(None)


async def all_heard(subscribers: list[Subscriber], seconds: float | None = None) -> None:
    """Wait until they have heard what they were told by now. Who needs more than `seconds` is cancelled."""
    heard = {one: one.heard() for one in subscribers}
    if heard:
        await asyncio.wait(heard.values(), timeout=seconds)
    for one, future in heard.items():
        if not future.done():
            logger.warning("a subscriber was not done within %s s and is cancelled: %r", seconds, one.handler)
            one.stop()


async def hear(handler: Callable[..., Any], *given: Any) -> None:
    """Call a handler; what it raises is logged, and nobody else's trouble."""

    async def call() -> None:
        said = handler(*given)
        if inspect.isawaitable(said):
            await said

    task = asyncio.ensure_future(call())
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    if not task.cancelled() and (error := task.exception()):
        logger.warning("%r raised: %s: %s", handler, type(error).__name__, error, exc_info=error)
