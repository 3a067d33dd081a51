"""From a dead worker to its successor: noticed at once, without the interpreter lock, and never two
at a time with what only one may hold.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time

import pytest
from hosting import LEDGER, PATIENCE_S, Hosted, kill, ledger, wait_file, wait_stopped

from dora_state.runtime import holdings
from dora_state.runtime.policy import RestartPolicy

# Tells through a FIFO when the second attempt at an event is made, and waits in the first.
WAITS = """
    import os, time

    class Operator:
        def on_event(self, event, send_output):
            if event["attempt"] == 1:
                print("busy", file=open({busy!r}, "w"))
                time.sleep(1000)
            os.write(os.open({fifo!r}, os.O_WRONLY), b"x")
            send_output("done", b"done")
            return 0
"""


def test_a_restart_does_not_wait_for_the_interpreter_lock(host, tmp_path):
    """dora's send_output keeps it for as long as 16 MB take. Here it is kept until the successor is
    in its handler.
    """
    busy, fifo = str(tmp_path / "busy"), str(tmp_path / "fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    keeping = ctypes.PyDLL(None)  # calls that do not give the lock up

    class PollFd(ctypes.Structure):
        _fields_ = (
            ("fd", ctypes.c_int),
            ("events", ctypes.c_short),
            ("revents", ctypes.c_short),
        )

    item = PollFd(reader, select.POLLIN, 0)
    try:
        hosted = host(WAITS.format(busy=busy, fifo=fifo)).start()
        hosted.wait_spare()
        hosted.send(0)
        wait_file(tmp_path / "busy")
        pid = hosted.wait_running()["worker_pid"]
        arm_is_due(hosted)
        keeping.kill(pid, 9)
        assert keeping.poll(ctypes.byref(item), 1, 20_000) == 1
        assert hosted.wait_outputs(1) == ["done"]
    finally:
        os.close(reader)


def arm_is_due(hosted: Hosted) -> None:
    """Wait until the spare that is there is the one that the lifeline would start."""
    hosted.supervisor.wake()
    wait_until(lambda: hosted.machine.succession._handover._spare is not None)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("event", ["waits", "is with it"])
def test_a_worker_may_die_together_with_its_spare(host, when, event):
    """Its lifeline starts a spare that is dead, and of which the host knows that already, or is about to."""
    hosted = host(kill="event@2=stop" if event == "is with it" else "").start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.wait_spare()
    if event == "is with it":
        hosted.send(1)
        wait_stopped(hosted.wait_running()["worker_pid"])
    arm_is_due(hosted)
    workers, current = hosted.machine.workers, hosted.machine.succession.current
    spare, end = workers.spares.spare, workers.end

    def end_of_both(each) -> None:
        if each is not spare:
            end(each)
            return
        workers.end = end
        if when == "after":
            end(each)
        kill(current.pid)
        wait_until(lambda: current.lifeline.died)
        if when == "before":
            end(each)

    workers.end = end_of_both
    kill(spare.pid)
    if event == "waits":
        hosted.send(1)
    assert hosted.wait_outputs(2) == ledger(2)
    hosted.send(2)
    assert hosted.wait_outputs(3) == ledger(3)
    assert hosted.finish().clean


class Gate:
    """Keeps the end of worker's pidfd from the host, as a kernel does that is still freeing memory."""

    def __init__(self, hosted: Hosted) -> None:
        self.opened = threading.Event()
        self._original = hosted.supervisor.workers._on_pidfd
        hosted.supervisor.workers._on_pidfd = self._on_pidfd

    def _on_pidfd(self, each: object) -> None:
        if self.opened.wait(0.001):  # level-triggered: it comes again
            self._original(each)


@pytest.mark.parametrize("standby", ["fork", "off"])
def test_a_successor_of_one_that_held_nothing_is_built_before_that_is_gone(host, standby):
    hosted = host(LEDGER, standby=standby)
    gate = Gate(hosted)
    hosted.start()
    hosted.send(0)
    hosted.wait_outputs(1)
    wait_until(lambda: hosted.machine.succession.current.holds is not None)
    kill(hosted.wait_running()["worker_pid"])
    hosted.wait_running(incarnation=2)
    hosted.send(1)
    assert hosted.wait_outputs(2) == ledger(2)
    gate.opened.set()


HOLDS_A_PORT = LEDGER.replace(
    "self.count = self.total = 0",
    """self.count = self.total = 0
            import socket
            self.heap = bytearray(b"x") * (256 << 20)
            self.socket = socket.create_server(("127.0.0.1", {port}))""",
)


@pytest.mark.parametrize("standby", ["fork", "off"])
def test_a_successor_waits_until_the_port_of_its_predecessor_is_free(host, caplog, standby):
    """The kernel closes files after it has freed the memory, which takes it a while here."""
    hosted = host(HOLDS_A_PORT.replace("{port}", str(free_port())), standby=standby).start()
    incarnation = 0
    for number in range(4):
        status = hosted.wait_running(incarnation + 1)
        incarnation = status["incarnation"]
        hosted.send(number)
        hosted.wait_outputs(number + 1)
        kill(status["worker_pid"])
    hosted.wait_running(incarnation + 1)
    assert hosted.texts == ledger(4)
    assert "failed in __init__" not in caplog.text


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_successor_of_one_that_held_a_socket_waits_also_when_its_end_is_slow(host):
    source = LEDGER.replace(
        "self.count = self.total = 0",
        "import socket; self.socket = socket.socket(); self.count = self.total = 0",
    )
    hosted = host(source, standby="off")
    gate = Gate(hosted)
    hosted.start()
    hosted.send(0)
    hosted.wait_outputs(1)
    wait_until(lambda: hosted.machine.succession.current.holds is not None)
    kill(hosted.wait_running()["worker_pid"])
    wait_until(lambda: hosted.supervisor.restarts == 1 and hosted.machine.succession.current)
    hosted.send(1)
    wait_until(
        lambda: hosted.machine.succession.current is not None
    )  # a moment after it was counted
    assert not hosted.machine.succession.current.was_started
    assert len(hosted.outputs) == 1
    gate.opened.set()
    assert hosted.wait_outputs(2) == ledger(2)


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_an_init_that_fails_beside_its_predecessor_is_retried_and_not_charged(
    host, caplog, tmp_path
):
    lives = tmp_path / "lives"
    source = LEDGER.replace(
        "class Operator:",
        f"""class Operator:
        handover = "dead"
        path = {str(lives)!r}
""",
    ).replace(
        "self.count = self.total = 0",
        """self.count = self.total = 0
            import socket
            self.socket = socket.socket()
            with open(self.path, "a+") as file:
                file.write("x")
                file.seek(0)
                if len(file.read()) == 2:
                    raise OSError("Address already in use")""",
    )
    policy = RestartPolicy(max_restarts=1, exhausted="stop", restart_delay=0.0)
    hosted = host(source, policy=policy, standby="off")
    gate = Gate(hosted)
    hosted.start()
    hosted.wait_running()
    wait_until(lambda: hosted.machine.succession.current.holds is not None)
    kill(hosted.wait_running()["worker_pid"])  # charged: it has committed nothing
    wait_until(lambda: hosted.supervisor.restarts == 2 and hosted.machine.succession.current)
    assert lives.read_text() == "xx"
    assert len(hosted.machine.verdict.history.charges) == 1
    wait_until(
        lambda: hosted.machine.succession.current is not None
    )  # a moment after it was counted
    assert not hosted.machine.succession.current.was_started  # it waits now
    gate.opened.set()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ledger(1)
    assert lives.read_text() == "xxx"
    assert "failed in __init__: OSError: Address already in use" in caplog.text


def test_an_unknown_handover_is_refused(host):
    hosted = host(LEDGER.replace("class Operator:", 'class Operator:\n        handover = "soon"'))
    with pytest.raises(Exception, match=r"Operator.handover is 'soon'; use 'gone' or 'dead'"):
        hosted.start()


def test_what_only_one_process_may_hold_is_seen(tmp_path):
    import fcntl
    import socket

    before = holdings.descriptors()
    with (
        open(tmp_path / "free", "w"),
        open("/dev/null"),
        open(tmp_path / "locked", "w") as locked,
        open(tmp_path / "shared", "w") as shared,
        socket.socket() as connection,
    ):
        fcntl.flock(locked, fcntl.LOCK_EX)
        fcntl.flock(shared, fcntl.LOCK_SH)
        held = holdings.beyond(before)
        number = os.fstat(connection.fileno()).st_ino
    assert [name for name in held if not name.startswith("process ")] == [
        str(tmp_path / "locked"),
        f"socket:[{number}]",
    ]


def test_a_socket_that_got_the_number_of_a_closed_file_is_seen(tmp_path):
    import socket

    with open(tmp_path / "free", "w") as free:
        number = free.fileno()
        before = holdings.descriptors()
    with socket.socket() as connection:
        assert connection.fileno() == number
        held = holdings.beyond(before)
        assert f"socket:[{os.fstat(number).st_ino}]" in held


@pytest.mark.parametrize(
    ("name", "exclusive"),
    [
        ("/dev/video0", True),
        ("/dev/ttyUSB0", True),
        ("socket:[1]", True),
        ("/dev/null", False),
        ("/dev/shm/x", False),
        ("/dev/pts/1", False),
        ("anon_inode:[eventfd]", False),
        ("/home/log.txt", False),
    ],
)
def test_devices_and_sockets_are_exclusive(name, exclusive):
    assert holdings._is_exclusive(name) == exclusive


SAYS_STOP = LEDGER.replace(
    "            return 0",
    """            elif event["type"] == "STOP":
                send_output("sum", b"stop %d" % self.count)
            return 0""",
)


class DiesAtStop:
    """The worker dies, and its lifeline starts the spare, while the loop is about to hand out STOP."""

    def __init__(self, hosted: Hosted) -> None:
        self._succession = hosted.machine.succession
        self._give = self._succession.give
        self.was_restarted = False
        self._succession.give = self._on_give

    def _on_give(self, event: object) -> bool:
        dead = self._succession.current
        if event.type == "STOP" and not self.was_restarted:
            kill(dead.pid)
            wait_until(lambda: dead.lifeline.died)
            done = self._give(event)
            self.was_restarted = self._succession.current is not dead
            return done
        return self._give(event)


@pytest.mark.parametrize("behind", [0, 2])
def test_a_stop_is_not_lost_when_its_worker_dies_as_it_is_handed_out(host, behind):
    hosted = host(SAYS_STOP)
    hosted.start()
    hosted.wait_spare()
    hosted.send(0)
    hosted.wait_outputs(1)
    arm_is_due(hosted)
    dies = DiesAtStop(hosted)
    hosted.send(b"", type="STOP")
    hosted.send(*range(1, 1 + behind))  # what comes behind it must not overtake it
    outcome = hosted.wait_end()
    assert dies.was_restarted
    assert hosted.texts == ["0 1 0", "stop 1"]
    assert outcome.clean == (behind == 0)
    assert hosted.state()["count"] == b"1"
