"""The adapter to dora: `dora-state run` is a dora node that hosts an operator in a child process.

The only module that imports dora. Who does what, and why the order matters:

    main thread   the supervisor's loop; never calls dora, which can hold the GIL or block for long
    dora-in       Node.next() without a timeout: with one it returned ERROR events
    dora-out      Node.send_output(), which holds the GIL: 0.2 ms for a small value, 20 ms for 1 MB
    status        writes the status to the shared store, whose lock may be held by a stopped process

The zygote is started before dora is imported, because `Node()` starts threads. `Node()` is built
after the operator's first `__init__` and restore: from then on dora's queue fills, and what
overflows is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_state import location, node_config
from dora_state.errors import OperatorError
from dora_state.runtime import shared_step
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.machine import State
from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.publisher import Publisher
from dora_state.runtime.stopping import Outcome
from dora_state.runtime.supervisor import Supervisor

log = logging.getLogger("dora_state.node")

PRELOAD = ("dora", "pyarrow")
BACKLOG_BYTES = 64 << 20  # outputs that wait for dora before the operator has to wait


@dataclass(frozen=True)
class RunOptions:
    """The options of `dora-state run`.

    Args:
        operator: the operator's Python file.
        restart: when and how often it is restarted.
        durability: of its saves: "process", "group" or "commit".
        keep: adopt saved state also after a clean stop.
        fresh: start empty also after a crash.
        state_dir: where state lives, instead of `state` beside the dataflow.
        shutdown_grace_s: how long it may take to stop before it is killed.
        immediate: ids of outputs that leave at once instead of with the commit of their event.
        standby: "fork" (a warm spare, forked), "process" (a warm spare that is an interpreter of
        its own, for what
            does not survive a fork) or "off" (no spare).
        preload: modules that are imported before a worker is needed, besides PRELOAD.
    """

    operator: Path
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    durability: str = "group"
    keep: bool = False
    fresh: bool = False
    state_dir: Path | None = None
    shutdown_grace_s: float = 5.0
    immediate: frozenset[str] = frozenset()
    standby: str = "fork"
    preload: tuple[str, ...] = ()


def run(options: RunOptions) -> int:
    """Host the operator as a dora node until the dataflow stops. Returns the exit code.

    Raises OperatorError if the operator's file or the state directory cannot be used; dora has then
    not been told that this node exists.
    """
    config = node_config.read()
    if config is None:
        raise OperatorError(
            "DORA_NODE_CONFIG is not set, so dora did not start this; write `path: dora-state` and "
            f"`args: run {options.operator}` in a dataflow's file and start that with `dora run`"
        )
    if unknown := sorted(options.immediate - config.outputs):
        raise OperatorError(
            f"--immediate {unknown[0]}: node {config.node_id} has no such output;"
            f" use one of its outputs: {', '.join(sorted(config.outputs)) or 'it has none'}"
        )
    shared = location.resolve(options.state_dir, Path.cwd()) / "shared"
    outlet = _Outlet()
    publisher = Publisher(config.node_id)
    supervisor = Supervisor(
        _supervisor_config(options, config, shared),
        outlet.put,
        publish=publisher.put,
        can_send=outlet.has_room,
    )
    outlet.wake = supervisor.wake
    with _stop_signals(supervisor), contextlib.closing(supervisor):
        supervisor.load()
        claim = location.claim(
            config.dataflow_id,
            config.node_id,
            state_dir=options.state_dir,
            keep=options.keep,
            keep_shared=config.keeps,
            fresh=options.fresh,
            cwd=Path.cwd(),
        )
        clean = False
        try:
            publisher.open(claim.shared)
            outcome = _host(supervisor, claim.path, outlet)
            clean = outcome.clean
        finally:
            supervisor.close()  # before the claim goes: two hosts must never share a store
            publisher.close()
            claim.finish(clean)
    log.info("ended: %s%s", outcome.why, "" if outcome.clean else " (not a clean stop)")
    return _exit_code(options, outcome)


def _host(supervisor: Supervisor, store: Path, outlet: _Outlet) -> Outcome:
    supervisor.start(store)
    if supervisor.state is not State.ENDED:
        node = _build_node()
        threading.Thread(target=_pump, args=(node, supervisor), name="dora-in", daemon=True).start()
        threading.Thread(target=outlet.run, args=(node,), name="dora-out", daemon=True).start()
    outcome = supervisor.run()
    outlet.close(supervisor.config.shutdown_grace_s)
    return outcome


def _exit_code(options: RunOptions, outcome: Outcome) -> int:
    """A crash that was not to be restarted fails the node. An exhausted policy does not: dora's own
    restart policy would take up where ours gave up (70 restarts in 3 s were seen)."""
    return 1 if outcome.failed and options.restart.restart_policy == "never" else 0


def _supervisor_config(
    options: RunOptions, config: node_config.NodeConfig, shared: Path
) -> SupervisorConfig:
    return SupervisorConfig(
        operator=options.operator,
        node_id=config.node_id,
        policy=options.restart,
        durability=options.durability,
        standby=options.standby,
        shutdown_grace_s=options.shutdown_grace_s,
        immediate=options.immediate,
        outputs=config.outputs,
        queue_sizes=config.queue_sizes,
        preload=(*PRELOAD, *options.preload),
        environment={**os.environ, shared_step.VARIABLE: str(shared)},
        descriptor=config.descriptor,
        arrow_outputs=True,
        adopts=True,
    )


def _build_node() -> Any:
    try:
        from dora import Node
    except ImportError as error:
        raise OperatorError(
            f"dora cannot be imported ({error}); install it with `pip install 'dora-state[dora]'`"
        ) from error
    return Node()


# dora-in and dora-out


def _pump(node: Any, supervisor: Supervisor) -> None:
    """dora-in: events from dora to the supervisor, copied on receipt."""
    try:
        while True:
            event = node.next()
            if event is None:
                break
            try:
                supervisor.submit(event)
            except TypeError as error:
                log.error("an event of type %s was dropped: %s", event.get("type"), error)
            if event.get("type") == "STOP":
                break
            del event  # gives dora its buffer back while we wait
    except Exception:
        log.exception("reading events from dora failed")
    supervisor.close_input()


class _Outlet:
    """dora-out: committed outputs to dora, in order."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        self._queue: queue.SimpleQueue[Output | None] = queue.SimpleQueue()
        self._lock = threading.Condition()
        self._waiting = 0
        self._waiting_bytes = 0
        self._is_full = False

    def put(self, output: Output) -> None:
        with self._lock:
            self._waiting += 1
            self._waiting_bytes += output.size_bytes
        self._queue.put(output)

    def has_room(self) -> bool:
        with self._lock:
            self._is_full = self._waiting_bytes > BACKLOG_BYTES
            return not self._is_full

    def run(self, node: Any) -> None:
        while (output := self._queue.get()) is not None:
            try:
                node.send_output(output.id, output.value, output.metadata)
            except Exception:
                log.exception("sending output %s failed", output.id)
            with self._lock:
                self._waiting -= 1
                self._waiting_bytes -= output.size_bytes
                wake = self._is_full
                self._lock.notify_all()
            if wake:
                self.wake()
            del output

    def close(self, timeout: float) -> None:
        """Wait until dora has taken everything, and end the thread."""
        self._queue.put(None)
        with self._lock:
            if not self._lock.wait_for(lambda: self._waiting == 0, timeout):
                log.error("%d outputs were not taken by dora in time", self._waiting)


# Signals


@contextlib.contextmanager
def _stop_signals(supervisor: Supervisor) -> Iterator[None]:
    """SIGTERM and SIGINT stop the operator in order, and its state is kept for the next run.

    dora says STOP for a clean end; a signal comes when its grace after that is over, or from others.
    """

    def stop(number: int, frame: object) -> None:
        supervisor.request_stop(clean=False)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    fd = signal.set_wakeup_fd(supervisor.wakeup_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd)
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> None:
    """End the process without waiting for dora's threads: dora-in may be inside Node.next() for
    ever.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
