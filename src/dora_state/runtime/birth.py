"""What a worker is told at its birth: by its operator's configuration, and by its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker of one operator needs to know. Travels as JSON."""

    operator: str
    class_name: str = "Operator"
    immediate: tuple[str, ...] = ()  # outputs that do not wait for the commit
    outputs: tuple[str, ...] | None = None  # those that the node has; None: any
    node_id: str = "operator"
    descriptor: Any = None  # becomes self.dataflow_descriptor
    arrow_outputs: bool = False  # outputs are bytes or Arrow arrays, as dora wants them

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Birth(NamedTuple):
    """What a worker gets from the host: descriptors, and what the host calls it."""

    socket: int
    lifeline: int
    number: int
    late: bool  # import at START
