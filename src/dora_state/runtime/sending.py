"""What an operator gets as `send_output`: checks, and to the host at once, marked with the event that it belongs to.

An output of a handler is held by the host until the event's commit (delivery.py), so its bytes count against
HELD_OUTPUT_BYTES. One that is declared immediate, or that is sent outside of a handler, is marked with no event and
leaves at once.
"""

from __future__ import annotations

import logging
from typing import Any

from dora_state import operator as operator_api
from dora_state.errors import TooLarge
from dora_state.runtime import channel, killpoint, value
from dora_state.runtime import metadata as dora_metadata
from dora_state.runtime.birth import WorkerConfig
from dora_state.runtime.step import Stage

log = logging.getLogger("dora_state.operator")

HELD_OUTPUT_BYTES = 256 << 20


class Sender:
    def __init__(self, host: channel.Channel, config: WorkerConfig) -> None:
        self._host = host
        self._node_id = config.node_id
        self._arrow_outputs = config.arrow_outputs
        self._immediate = frozenset(config.immediate)
        self._outputs = frozenset(config.outputs) if config.outputs is not None else None
        self._warned: set[str] = set()

    def send_output(
        self, output_id: str, data: Any, metadata: dict[str, Any] | None = None
    ) -> None:
        """As dora's, but the output leaves with the event's commit."""
        if not isinstance(output_id, str):
            raise TypeError(f"an output id is a str, not {type(output_id).__name__}")
        if self._outputs is not None and output_id not in self._outputs:
            self._ignore(output_id)
            return
        encoded = value.encode(data, copy=False, make_slot=self._host.sharing.make_slot)
        if self._arrow_outputs and encoded.head[0] in (value.NONE, value.PACKED):
            raise TypeError(
                f"send_output({output_id!r:.80}): a {type(data).__name__} is no output; "
                "send bytes or a pyarrow array"
            )
        if metadata is not None and self._arrow_outputs:
            dora_metadata.check(output_id, metadata)
        stage = operator_api.stage.get()
        number, holder = 0, None  # outside a handler: leaves at once
        if isinstance(stage, Stage) and stage.is_open and stage.number:
            if output_id not in self._immediate:
                if stage.output_bytes + encoded.size_bytes > HELD_OUTPUT_BYTES:
                    raise TooLarge(
                        f"the outputs of one event exceed {HELD_OUTPUT_BYTES >> 20} MiB; "
                        f"declare {output_id!r} as an immediate output, or send less per event"
                    )
                number, holder = stage.number, stage
            killpoint.reach("output", stage.number)
            if killpoint.is_set("torn-output", stage.number):
                self._tear(stage.number)
        document = channel.pack((number, output_id, metadata or {}, encoded.head), other=_as_dora)
        if holder is not None:  # not before all that may refuse it
            holder.output_bytes += encoded.size_bytes
            holder.outputs += 1
        value.send(self._host, channel.OUTPUT, document, encoded)
        if number:
            killpoint.reach("after-output", number)

    def _ignore(self, output_id: str) -> None:
        """As dora does it: said once, and no failure."""
        if output_id not in self._warned:
            self._warned.add(output_id)
            log.warning(
                "the output %r is ignored: node %s has no such output; it has %s",
                *(output_id, self._node_id, ", ".join(sorted(self._outputs or ())) or "none"),
            )

    def _tear(self, number: int) -> None:
        """Die with half a message sent."""
        whole = b"".join(channel.frame(channel.OUTPUT, bytes(64)))
        self._host.socket.sendall(whole[: len(whole) // 2])
        killpoint.reach("torn-output", number)


def _as_dora(content: Any) -> Any:
    """Metadata that dora has no type for becomes text, as dora does it; numpy's numbers become
    plain ones.
    """
    item = getattr(content, "item", None)
    return item() if item is not None and getattr(content, "ndim", 1) == 0 else str(content)
