"""A hosted operator for asyncio: the names of OperatorHost, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from typing import Any

from dora_state.host_thread import Hosted, HostThread
from dora_state.traffic import Output, input_event


class AsyncHost(Hosted):
    """What `async with OperatorHost(...)` gives: the same names, to be awaited in one event loop.

    A call that is cancelled takes nothing back: an event that was taken is handled, and its outputs come out of
    the iteration.
    """

    def __init__(self, host: HostThread) -> None:
        self._host = host
        self._traffic = host.traffic

    async def send(
        self, input_id: str, value: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> list[Output]:
        """Hand over an event, wait until it is committed, and return its outputs. See OperatorHost.send."""
        return await self.send_event(input_event(input_id, value, metadata))

    async def submit(
        self, input_id: str, value: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Hand over an event as soon as there is room."""
        await self._put(input_event(input_id, value, metadata), None)

    async def send_event(self, event: Mapping[str, Any]) -> list[Output]:
        """As `send`, with an event of any type. Refuses what `OperatorHost.send_event` refuses."""
        answer: Future[list[Output]] = Future()
        await self._put(event, answer)
        return await asyncio.wrap_future(answer)

    async def submit_event(self, event: Mapping[str, Any]) -> None:
        """As `submit`, with an event of any type."""
        await self._put(event, None)

    async def receive(self) -> Output | None:
        """The next output that was no answer to a `send`; None after the end."""
        return await asyncio.wrap_future(self._traffic.next_output())

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (output := await self.receive()) is not None:
            yield output

    def close_input(self) -> None:
        """No more events will come: the operator handles what is there, and ends."""
        self._host.close_input()

    async def _put(self, content: Mapping[str, Any], answer: Future[list[Output]] | None) -> None:
        event = self._traffic.take_apart(content)
        if (room := self._traffic.room(event)) is not None:
            try:
                await asyncio.wrap_future(room)
            except asyncio.CancelledError:
                if not room.cancelled():  # it was given at the last moment
                    self._traffic.give_back(event)
                raise
        self._traffic.put(event, answer)
