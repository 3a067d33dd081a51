"""The worker: a child process that holds one incarnation of the operator.

    hold the lifeline; import the operator's file      -> IMPORTED
    OPEN    open the store, as incarnation k
    START   __init__; if there is state                -> RESTORING
            restore_state, validate_state              -> READY
            when the first event is handled            -> HOLDS
    EVENT   on_event; every output                     -> OUTPUT
            one commit of the saves and the step       -> DONE
    RELOAD  the new code is about to run               -> RELOADING
            an operator of it, if that works           -> RELOADED
    STOP    drop the operator, close the store, exit 0
    an exception anywhere                              -> FAILED, exit 70

A spare is a worker that got no START yet: the file is imported, `__init__` has not run, since a
device must not be opened twice. If importing alone takes such things, a spare is born `late`, and
imports at START. The store is opened beforehand; what is on record is read only
after START, because the host sends it after the fence.

Outputs go to the host before the commit and rest in its memory or in the socket, where the death of
this process does not reach them. The commit record carries their number.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from dora_state import operator as operator_api
from dora_state import shared_writes
from dora_state._core import USER, Store, hold_lifeline
from dora_state.errors import OperatorError
from dora_state.operator import RestoreInfo
from dora_state.runtime import (
    channel,
    holdings,
    killpoint,
    last_words,
    loading,
    process,
    reload,
    shared_step,
    snapshot,
    step,
    value,
)
from dora_state.runtime.birth import Birth, WorkerConfig
from dora_state.runtime.sending import Sender
from dora_state.runtime.shared_step import ConflictError, SharedSteps
from dora_state.runtime.step import Stage, Step
from dora_state.typed_state import Fields

log = logging.getLogger("dora_state.operator")

FAILED_EXIT = 70  # EX_SOFTWARE
_BEGUN = struct.Struct("<Q")  # in the lifeline's note: see lifeline.h
_BEGUN_AT = 496


def run(birth: Birth, config: WorkerConfig) -> NoReturn:
    """Be the host's worker, until told to stop or until the host goes away."""
    note = hold_lifeline(birth.lifeline)
    os.close(birth.lifeline)
    sock = socket.socket(fileno=birth.socket)
    worker = Worker(channel.Channel(sock), config, birth.number, late=birth.late)
    worker.note = note
    code = FAILED_EXIT
    try:
        worker.serve()
        code = 0
    except ConflictError as error:
        last_words.leave_note(worker.note, "conflict", "")
        with contextlib.suppress(OSError):
            worker.host.send(channel.CONFLICT, channel.pack(str(error)))
    except BaseException as error:
        try:
            worker.report(error)
        except BaseException:  # then as the interpreter does it; the host has only the exit code
            with contextlib.suppress(BaseException):
                sys.excepthook(type(error), error, error.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # No exit handlers, and no waiting for the operator's threads: a crashed operator is not
        # asked for help.
        os._exit(code)


class Worker:
    def __init__(
        self, host: channel.Channel, config: WorkerConfig, number: int, *, late: bool = False
    ) -> None:
        self.host = host
        self.config = config
        self.number = number
        self.late = late
        self.incarnation = 0
        self.phase = "import"
        self.store: Store | None = None
        self.operator: Any = None
        self.shared: SharedSteps | None = None  # with shared_writes = "commit"
        self._fields: Fields | None = None  # of an operator with typed state
        self._module: ModuleType | None = None
        self._sender = Sender(host, config)
        self._warned_none = False
        self.note: memoryview | None = None  # in the lifeline: last words for the successor
        self._parent = os.getppid()  # the zygote, or this process is dead
        self._baseline: frozenset[holdings.Descriptor] = frozenset()
        self._owes_holdings = False
        self._starting = Stage()  # of __init__, then of restore_state
        self._started = threading.Event()

    # The loop

    def serve(self) -> None:
        self._settle_in()
        module = None if self.late else self._import()
        while True:
            messages = self.host.receive()
            if messages is None:
                return
            for message in messages:
                if message.kind == channel.EVENT:
                    self._handle(message)
                elif message.kind == channel.TYPE:
                    value.learn_type(self.host, message.document)
                elif message.kind == channel.OPEN:
                    path, durability, self.incarnation = message.document
                    self.phase = "opening the store"
                    self.store = Store(path, durability=durability, incarnation=self.incarnation)
                elif message.kind == channel.START:
                    module = module or self._import()
                    self._start(module, _offer(message))
                elif message.kind == channel.RELOAD:
                    self._reload()
                elif message.kind == channel.STOP:
                    self._stop()
                    return
            if self._owes_holdings:  # the event that came with START is handled first
                self._owes_holdings = False
                self.host.send(channel.HOLDS, channel.pack(self._holdings()))

    def _import(self) -> ModuleType:
        signature = loading.file_signature(self.config.operator)
        before = process.footprint()
        self._baseline = holdings.descriptors()
        with loading.no_bytecode(self.number == 1):
            path = Path(self.config.operator)
            module = loading.load(path, self.number, class_name=self.config.class_name)
        report = {
            "pid": os.getpid(),
            "signature": signature,
            "why_late": loading.why_late(
                before, process.footprint(), holdings.beyond(self._baseline)
            ),
        }
        self.host.send(channel.IMPORTED, channel.pack(report))
        return module

    def _holdings(self) -> list[str]:
        """What a successor's `__init__` has to wait for."""
        if getattr(self.operator, "handover", loading.GONE) == loading.DEAD:
            return []
        return holdings.beyond(self._baseline)

    def _settle_in(self) -> None:
        """Undo what a fork shares that should not be shared, and make crashes leave a trace."""
        faulthandler.enable(os.dup(2))  # the operator may close its own, and open something else
        logging.basicConfig(
            level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()  # forks of one zygote would all draw the same numbers
        os.register_at_fork(before=self.host.sharing.keep_all, after_in_child=self._leave)
        process.restore_stop_signals_in_forks()
        operator_api.session = self

    def _leave(self) -> None:
        """In a child that the operator forked: it is no worker, and must not speak or commit like
        one.
        """
        operator_api.session = None
        self.note = None  # what it says last is not what its parent died of
        shared_writes.current.set(None)  # what it would stage, nobody commits
        self.host.close()

    def report(self, error: BaseException) -> None:
        message = {"phase": self.phase, **last_words.describe(error)}
        last_words.leave_note(self.note, "exception", channel.describe_failure(message))
        self.host.send(channel.FAILED, channel.pack(message))

    # Starting

    def _start(self, module: ModuleType, offer: dict[str, Any]) -> None:
        assert self.store is not None
        if shared_step.recover(self.store, self.config.node_id, self.incarnation):
            self.host.send(channel.RECOVERED, channel.pack(None))
        began = time.monotonic()
        snapshot_id = offer.pop("snapshot")
        operator_api.restored = RestoreInfo(incarnation=self.incarnation, **offer)
        state = self._read_state(snapshot_id)
        cls = getattr(module, self.config.class_name)
        self._use(module)
        self._construct(cls, state)
        built = time.monotonic()
        self._restore(state, snapshot_id)
        self._started.set()
        self.phase = "event"
        self._owes_holdings = True
        report = {
            "restored_keys": len(state),
            "init_ms": (built - began) * 1e3,
            "restore_ms": (time.monotonic() - built) * 1e3,
        }
        self.host.send(channel.READY, channel.pack(report))

    def _read_state(self, snapshot_id: int) -> dict[str, bytes]:
        """The last committed state, or that of a snapshot."""
        assert self.store is not None
        if not snapshot_id:
            return {key: data for key, data, _ in self.store._scan(USER)}
        self.phase = "restore_state"
        return snapshot.load(self.store, snapshot_id)

    def _use(self, module: ModuleType) -> None:
        """Its class is the operator's from here on."""
        assert self.store is not None
        cls = getattr(module, self.config.class_name)
        self._module = module
        if self.shared is not None:
            self.shared.close()
            self.shared = None
        if loading.shared_writes_of(cls) == shared_writes.COMMIT:
            self.shared = SharedSteps(self.store, self.config.node_id)
        for name in ("save_state", "delete_state"):
            if not hasattr(cls, name):
                with contextlib.suppress(TypeError):  # a class written in C or Cython takes none
                    setattr(cls, name, staticmethod(getattr(operator_api, name)))

    def _construct(self, cls: Any, state: dict[str, bytes]) -> None:
        self.phase = "__init__"
        stage = self._starting
        token = operator_api.stage.set(stage)
        try:
            killpoint.reach("init", self.incarnation)
            self.operator = cls()
            # Again: the kernel forgets it when __init__ gives up rights.
            process.die_with_parent(self._parent)
            self._fields = Fields.of(self.operator)
            if self._fields is not None and not state:
                self._fields.save(stage.put)
            killpoint.reach("after-init", self.incarnation)
        finally:
            operator_api.stage.reset(token)
            if state:
                self._starting = Stage()
            saved = stage.close()
        if saved and state:
            log.warning(
                "saves made in __init__ are discarded, as there is state to restore (keys: %s)",
                ", ".join(sorted(saved)),
            )
        elif saved:
            self._commit(saved)
        with contextlib.suppress(AttributeError):  # the same
            self.operator.dataflow_descriptor = self.config.descriptor

    def _restore(self, state: dict[str, bytes], snapshot_id: int) -> None:
        if not state:
            return
        assert self.store is not None
        self.phase = "restore_state"
        self.host.send(channel.RESTORING, channel.pack(None))
        committed = state
        if self._fields is not None:
            state = self._fields.restore(state)
        restore = getattr(self.operator, "restore_state", None)
        if restore is None and state:
            log.warning("there is saved state, but the operator has no restore_state")
        stage = self._starting
        token = operator_api.stage.set(stage)
        try:
            killpoint.reach("restore", self.incarnation)
            if restore is not None:
                restore(state)
            validate = getattr(self.operator, "validate_state", None)
            if validate is not None:
                validate()
            if self._fields is not None:
                self._fields.save(stage.put)
            killpoint.reach("after-restore", self.incarnation)
        finally:
            operator_api.stage.reset(token)
            saved = stage.close()
        if snapshot_id:
            snapshot.roll_back(self.store, snapshot_id, committed, saved)
        elif saved:
            self._commit(saved)
        if snapshot_id or saved:
            killpoint.reach("after-restore-commit", self.incarnation)

    # Events

    def _handle(self, message: channel.Message) -> None:
        number, packed, head, letter = message.document
        attempt = message.attempt
        if self.note is not None:
            _BEGUN.pack_into(self.note, _BEGUN_AT, number)
        event = channel.unpack(packed)
        if head is not None:
            event["value"] = value.decode(head, message.buffers, self.host.types)
            message.buffers.clear()  # what keeps a large one is the value alone
        event["attempt"] = attempt
        killpoint.attempt(attempt)
        stage = Stage(number)
        token = operator_api.stage.set(stage)
        staged = shared_writes.Staged() if self.shared is not None else None
        shared_token = shared_writes.current.set(staged)
        try:
            killpoint.reach("event", number)
            status = self._status(self.operator.on_event(event, self._sender.send_output))
            if self._fields is not None:
                self._fields.save(stage.put)
        finally:
            shared_writes.current.reset(shared_token)
            operator_api.stage.reset(token)
            saved = stage.close()
        del event  # so that a large value that nobody keeps is returned with DONE
        killpoint.reach("before-commit", number)
        done = Step(number, self.incarnation, status, stage.outputs, letter)
        if self.shared is not None and staged is not None and staged.close():
            self.shared.commit(staged, saved, done)
        else:
            self._commit(saved, done)
        killpoint.reach("after-commit", number)
        self.host.send(channel.DONE, channel.pack((number, status, stage.outputs)))
        killpoint.reach("after-ack", number)

    def _status(self, returned: Any) -> int:
        """DoraStatus by value: the class belongs to dora, which is not imported here."""
        status = getattr(returned, "value", returned)
        if status is None:
            if not self._warned_none:
                self._warned_none = True
                log.warning("on_event returned None; taken as DoraStatus.CONTINUE")
            return step.CONTINUE
        # True is an int, and the number of STOP: it is not what was meant.
        if type(status) is int and status in (step.CONTINUE, step.STOP, step.STOP_ALL):
            return status
        raise TypeError(f"on_event returned {returned!r:.80}; return a DoraStatus")

    # Saving

    def _commit(self, changes: dict[str, bytes | None], done: Step | None = None) -> None:
        assert self.store is not None
        step.commit(self.store, changes, done)

    def commit_now(self, key: str, data: bytes | None) -> None:
        """A save from outside a handler, or with flush: a commit of its own, the step stays where
        it is. From another thread while the operator starts it is one of the start's: a state that
        is not restored yet must not be overwritten.
        """
        if self.store is None:
            raise OperatorError("there is no saved state yet while the operator's file is imported")
        if not self._started.is_set():
            if self._starting.put(key, data):
                return
            self._started.wait()  # for the commit; where it fails, the process ends
        self._commit({key: data})

    # Reloading

    def _reload(self) -> None:
        """Between two events. What the new `__init__` saves or fails with changes nothing."""
        assert self._module is not None
        self.host.send(channel.RELOADING, channel.pack(None))
        fields = self._fields
        stage = Stage()
        token = operator_api.stage.set(stage)
        failure = None
        try:
            module, self.operator = reload.replace(
                self._module,
                self.operator,
                self.config.class_name,
                self._load_again,
                self._take_fields,
            )
            self._use(module)
        except BaseException as error:
            self._fields = fields
            failure = last_words.describe(error)
        finally:
            operator_api.stage.reset(token)
            stage.close()
        self.host.send(channel.RELOADED, channel.pack(failure))

    def _load_again(self, name: str) -> ModuleType:
        return loading.load(
            Path(self.config.operator), name=name, class_name=self.config.class_name
        )

    def _take_fields(self, operator: Any) -> None:
        """The fields of the new class go on with what the old one had. Raises if they cannot."""
        fields = Fields.of(operator)
        if self._fields is not None:
            fields = Fields(operator, {}) if fields is None else fields
            fields.take_over(self._fields)
        self._fields = fields

    # Ending

    def _stop(self) -> None:
        self.phase = "teardown"
        self.operator = self._fields = None  # dora's operators tear down in __del__
        if self.shared is not None:
            self.shared.close()
        if self.store is not None:
            self.store.close()


def _offer(message: channel.Message) -> dict[str, Any]:
    """What START says. One that a lifeline has sent carries the predecessor's note."""
    offer: dict[str, Any] = message.document
    if message.buffers:
        offer.update(channel.unpack_note(message.buffers[0]))
    return offer
