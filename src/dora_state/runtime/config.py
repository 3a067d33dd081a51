"""What is hosted, and how: what a node or a program tells the supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_state.runtime import inputs, policy, snapshot
from dora_state.runtime.birth import WorkerConfig
from dora_state.runtime.pipes import Relay
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.zygote import Zygote

STANDBY = ("fork", "process", "off")


@dataclass(frozen=True)
class SupervisorConfig:
    """What to host and how.

    Args:
        operator: the operator's Python file.
        class_name: the operator's class in it.
        node_id: its name in logs.
        durability: of its saves.
        standby: "fork", "process" or "off"; see zygote.py.
        shutdown_grace_s: from the wish to stop to SIGKILL.
        immediate: ids of outputs that do not wait for the commit.
        queue_sizes: per input, as in a dataflow's file.
        queue_size: of all other inputs.
        preload: modules imported ahead of time: once for all forks, or in each spare that is an interpreter.
        environment: of zygote and workers; None: ours.
        descriptor: becomes self.dataflow_descriptor.
        arrow_outputs: outputs are bytes or Arrow arrays, as dora wants them.
        outputs: ids of the node's outputs; what else is sent is ignored, with a warning. None: any.
        snapshot_period_s: how long an incarnation runs before its state is kept as a snapshot, and how
            long until the next one.
        adopts: this process starts no others, and ends what falls to it when the zygote is killed.
    """

    operator: Path
    class_name: str = "Operator"
    node_id: str = "operator"
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    durability: str = "group"
    standby: str = "fork"
    shutdown_grace_s: float = 5.0
    immediate: frozenset[str] = frozenset()
    queue_sizes: Mapping[str, int] = field(default_factory=dict)
    queue_size: int = inputs.QUEUE_SIZE
    preload: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    descriptor: Any = None
    arrow_outputs: bool = False
    outputs: frozenset[str] | None = None
    snapshot_period_s: float = snapshot.PERIOD_S
    adopts: bool = False

    def __post_init__(self) -> None:
        if self.standby not in STANDBY:
            raise ValueError(f"standby is {self.standby!r}; use one of {', '.join(STANDBY)}")
        policy.check_seconds("shutdown_grace_s", self.shutdown_grace_s)

    def make_zygote(self, relay: Relay) -> Zygote:
        """The process that forks the workers; `relay` passes on what they print."""
        return Zygote(
            WorkerConfig(
                operator=str(self.operator.resolve()),
                class_name=self.class_name,
                immediate=tuple(sorted(self.immediate)),
                outputs=tuple(sorted(self.outputs)) if self.outputs is not None else None,
                node_id=self.node_id,
                descriptor=self.descriptor,
                arrow_outputs=self.arrow_outputs,
            ),
            preload=self.preload,
            forks=self.standby != "process",
            environment=self.environment,
            stdout=relay.stdout,
            stderr=relay.stderr,
        )
