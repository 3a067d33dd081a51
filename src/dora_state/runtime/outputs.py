"""Outputs of the operator, held back until the commit of their event is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dora_state.runtime import channel, value


@dataclass(frozen=True)
class Output:
    """One call of send_output. `number` is the event it belongs to; 0: none, it does not wait."""

    number: int
    id: str
    metadata: dict[str, Any]
    head: tuple[Any, ...]
    buffers: list[memoryview]
    types: dict[int, Any]

    @property
    def value(self) -> Any:
        """What the operator sent: bytes, or an Arrow array over the received memory."""
        return value.decode(self.head, self.buffers, self.types)

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)


def from_message(message: channel.Message, types: dict[int, Any]) -> Output:
    number, output_id, metadata, head = message.document
    return Output(number, output_id, metadata, tuple(head), message.buffers, types)
