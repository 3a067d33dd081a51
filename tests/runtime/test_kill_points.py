"""Death at named points of the host, and of a worker at any instruction of its commit.

The named points of a worker are in test_restart.py and test_shared_writes.py.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import time
from pathlib import Path

import pytest
from hosting import LEDGER, PATIENCE_S, Hosted, kill, ledger
from test_processes import HostProcess

from dora_state._core import Store
from dora_state.runtime import killpoint, step

NEW = 7


@pytest.mark.parametrize("point", killpoint.HOST_POINTS)
def test_a_host_that_dies_anywhere_never_takes_a_new_event_for_an_old_one(
    tmp_path, monkeypatch, point
):
    """What was in its memory is lost, what was committed is not, and nothing counts or comes out twice."""
    dies = f"before-commit@2,{point}@2" if "fence" in point else f"{point}@2"
    monkeypatch.setenv("DORA_STATE_KILL", dies)
    first = HostProcess(tmp_path, LEDGER, 5.0)
    try:
        first.wait_running()
        first.send(0, 1, 2)
        assert first.popen.wait(PATIENCE_S) == -signal.SIGKILL
        first.wait_eof()
        before = first.outputs()
    finally:
        first.close()
    monkeypatch.delenv("DORA_STATE_KILL")

    second = HostProcess(tmp_path, LEDGER, 5.0)
    try:
        second.wait_running()
        second.send(NEW)
        second.wait(lambda: second.outputs())
        kill(second.popen.pid, signal.SIGTERM)
        assert second.popen.wait(PATIENCE_S) == 0
        (after,) = second.outputs()
    finally:
        second.close()
    _, count, total = map(int, after.split())
    committed = count - 1
    assert before == ledger(len(before))
    assert len(before) <= committed <= 2
    assert total == sum(range(committed)) + NEW
    assert count_on_record(tmp_path / "store") > committed


def count_on_record(path: Path) -> int:
    store = Store(str(path))
    try:
        return step.read(store).number
    finally:
        store.close()


# Single steps. The tracer is this thread: ptrace belongs to threads.

_ATTACH, _STEP, _PEEK_USER, _WALL = 16, 9, 3, 0x40000000
_RIP = 128  # of the instruction pointer in what _PEEK_USER reads
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
STEPS = 8


def trace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) < 0:
        number = ctypes.get_errno()
        if number == 1:
            pytest.skip("no permission to trace the worker")
        raise OSError(number, os.strerror(number))


def attach_to_stopped(hosted: Hosted, incarnation: int) -> int:
    """The worker that has stopped itself."""
    pid = hosted.wait_running(incarnation)["worker_pid"]
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    trace(_ATTACH, pid)
    _, status = os.waitpid(pid, _WALL)
    while os.WSTOPSIG(status) != signal.SIGTRAP:  # its own SIGSTOP, and the one of attaching
        trace(_STEP, pid)
        _, status = os.waitpid(pid, _WALL)
    return pid


def steps(pid: int, count: int) -> None:
    for _ in range(count):
        assert step_once(pid)


def step_once(pid: int) -> bool:
    """False if the worker has stopped itself again."""
    trace(_STEP, pid)
    _, status = os.waitpid(pid, _WALL)
    assert os.WIFSTOPPED(status), "it has ended"
    return os.WSTOPSIG(status) != signal.SIGSTOP


def steps_in_the_engine(pid: int) -> tuple[int, int]:
    """The first and the last step that is made in the engine's code, until the worker stops itself."""
    low, high = engine_code(pid)
    inside = []
    count = 0
    while step_once(pid):
        count += 1
        if low <= _libc.ptrace(_PEEK_USER, pid, _RIP, None) < high:
            inside.append(count)
    return inside[0], inside[-1]


def engine_code(pid: int) -> tuple[int, int]:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    (code,) = [line for line in maps if "/_core." in line and " r-xp " in line]
    low, _, high = code.split()[0].partition("-")
    return int(low, 16), int(high, 16)


def kill_traced(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while not os.WIFSIGNALED(os.waitpid(pid, _WALL)[1]):
        pass


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the offset of the instruction pointer")
def test_death_at_any_instruction_of_a_commit_leaves_the_ledger_exact(host):
    """Stepped through once to see where the engine begins and ends, then killed at instructions that are
    spread over that.
    """
    stops = [f"before-commit@{n}=stop" for n in range(2, 2 * STEPS + 3, 2)]
    hosted = host(kill=",".join([*stops, "after-commit@2=stop"])).start()
    incarnation = 0
    for n in range(1, 2 * STEPS + 3):
        hosted.send(n - 1)
        if n % 2 == 0:
            pid = attach_to_stopped(hosted, incarnation + 1)
            incarnation = hosted.statuses[-1]["incarnation"]
            if n == 2:
                first, last = steps_in_the_engine(pid)
            else:
                steps(pid, first + (last - first) * (n // 2 - 2) // (STEPS - 1))
            kill_traced(pid)
        hosted.wait_outputs(n)
    assert last - first > 1000
    hosted.finish()
    assert hosted.texts == ledger(2 * STEPS + 2)
    assert int(hosted.state()["count"]) == 2 * STEPS + 2
    assert hosted.supervisor.restarts == STEPS + 1
