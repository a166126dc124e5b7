"""Events of a state, and the bus that brings them to subscribers, sync or async, each in its own order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from necrocode import clock
from necrocode.aio.subscriber import Subscriber, all_heard
from necrocode.parallel.models import EventType, ExecutionResult, ExecutionStatus

if TYPE_CHECKING:
    from necrocode.parallel.state import ExecutionState

Handler = Callable[["ExecutionEvent"], Any]


class BaseActor(BaseModel):
    """Who does something: `handler(input_data, extra_context, execution_state)` is a function, sync or async."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    description: str = ""
    event_type: EventType = EventType.AGENT_CALL
    handler: Callable[..., Any] | None = Field(default=None, exclude=True, repr=False)


class ExecutionEvent(BaseModel):
    """One thing that happened. `group_id`, `parallel_index` and `is_parallel` say whose member it is about; of a
    group's own events only `group_id` is set. `total` is the number of a group's members, `at` seconds since 1970."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    actor: BaseActor | str = ""
    address: str = ""
    event_type: EventType = EventType.TASK
    execution_status: ExecutionStatus = ExecutionStatus.STARTED
    execution_time: float | None = None
    result: Any = None
    message: str = ""
    is_replayed: bool = False
    from_cache: bool = False
    group_id: str | None = None
    parallel_index: int | None = None
    is_parallel: bool = False
    total: int | None = None
    at: float = Field(default_factory=clock.wall)

    @property
    def name(self) -> str:
        return self.actor.name if isinstance(self.actor, BaseActor) else self.actor

    async def __call__(
        self, input_data: Any = None, extra_context: Any = None, execution_state: ExecutionState | None = None
    ) -> ExecutionResult:
        """Carry out the actor's handler; its start and end are published on the state's bus, and in its history."""
        if not isinstance(self.actor, BaseActor) or self.actor.handler is None:
            raise TypeError(f"{self.name or 'this event'} has no actor with a handler to call")
        from necrocode.parallel.state import ExecutionState

        state = execution_state if execution_state is not None else ExecutionState()
        return await state.perform(self, input_data, extra_context)


class EventBus:
    """Brings every event to every subscriber. One that raises is logged and goes on hearing; a slow one keeps
    neither the others nor the work waiting."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []
        self._streams: list[asyncio.Queue[ExecutionEvent | None]] = []

    @property
    def is_heard(self) -> bool:
        return bool(self._subscribers or self._streams)

    def subscribe(self, handler: Handler) -> Handler:
        """Call `handler(event)` for every event from now on; what it gives is awaited if it can be."""
        self._subscribers.append(Subscriber(handler))
        return handler

    def unsubscribe(self, handler: Handler) -> None:
        self._subscribers = [one for one in self._subscribers if one.handler != handler]

    async def publish(self, event: ExecutionEvent) -> None:
        """Tell everybody, and wait until they have heard it and everything before it."""
        self.tell(event)
        await self.settled()

    def tell(self, event: ExecutionEvent) -> None:
        """Tell everybody, as soon as the loop comes to it. Needs a running loop."""
        for subscriber in self._subscribers:
            subscriber.tell(event)
        for queue in self._streams:
            queue.put_nowait(event)

    async def settled(self, seconds: float | None = None) -> None:
        """Wait until everybody has heard what was told by now. Who needs more than `seconds` is cancelled."""
        await all_heard(self._subscribers, seconds)

    async def stream(self) -> AsyncIterator[ExecutionEvent]:
        """Every event from now on, until `close`."""
        queue: asyncio.Queue[ExecutionEvent | None] = asyncio.Queue()
        self._streams.append(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            if queue in self._streams:
                self._streams.remove(queue)

    def close(self) -> None:
        """End every stream."""
        for queue in self._streams:
            queue.put_nowait(None)
