"""The processes: nothing outlives the node, nothing of the node is held open, signals do not get in
the way.

Each test stands for a trap of dora and fails without its handling.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hosting import LEDGER, PATIENCE_S, kill, ledger, wait_file, wait_gone, wait_stopped
from killable import HostProcess

from dora_state.runtime import pipes, process


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path("/proc", name, "stat").read_text()
                parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    found, more = set(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def wait_family(pid: int, size: int) -> set[int]:
    """Wait until there are `size` processes below `pid`: guardian, zygote, worker, spare."""
    for _ in range(int(PATIENCE_S / 0.01)):
        family = descendants(pid)
        if len(family) >= size:
            return family
        threading.Event().wait(0.01)  # another process's fork is no event that we could wait for
    raise AssertionError(f"{descendants(pid)} below {pid}")


# PDEATHSIG, whatever is killed in whatever order


ROLES = ["host", "guardian", "zygote", "worker"]


@pytest.mark.parametrize("order", list(itertools.permutations(ROLES)), ids="-".join)
def test_no_process_outlives_the_node_whatever_is_killed_in_whatever_order(host_process, order):
    host = host_process()
    status = host.wait_running()
    family = wait_family(host.popen.pid, 4)
    pids = {
        "host": host.popen.pid,
        "guardian": parent(status["zygote"]),
        "zygote": status["zygote"],
        "worker": status["worker_pid"],
    }
    for name in order:
        kill(pids[name])
    host.popen.wait(PATIENCE_S)
    for pid in family:
        assert wait_gone(pid)
    host.wait_eof()


# Five of them, as the kernel has it when each is to be killed before any other can act.
SUBSETS = [
    subset
    for size in range(len(ROLES) + 2)
    for subset in itertools.combinations([*ROLES, "spare"], size)
]


def marked(mark: str) -> set[int]:
    """All living processes that have inherited a mark in their environment."""
    found = set()
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if name.isdigit() and mark.encode() in Path("/proc", name, "environ").read_bytes():
                found.add(int(name))
    return found - {os.getpid()}


@pytest.fixture
def marked_host(host_process, monkeypatch, tmp_path):
    """A host, and a function that finds it and all processes that came from it, also those of later."""
    mark = f"DORA_STATE_TEST_MARK={tmp_path}"
    monkeypatch.setenv(*mark.split("=", 1))
    yield host_process(), lambda: marked(mark)
    for pid in marked(mark):
        kill(pid)


def roles(host: HostProcess, find) -> dict[str, int]:
    """Who is who, when all are there."""

    def settled():
        status = host.wait_running()
        pids = find()
        worker, zygote = status["worker_pid"], status["zygote"]
        others = pids - {host.popen.pid, worker, zygote, parent(zygote)}
        alive = {worker, zygote} <= pids and len(others) == 1 and parent(zygote) != 1
        if not alive or parent(*others) != zygote:
            return None
        return {
            "host": host.popen.pid,
            "guardian": parent(zygote),
            "zygote": zygote,
            "worker": worker,
            "spare": others.pop(),
        }

    for _ in range(int(PATIENCE_S / 0.01)):
        with contextlib.suppress(OSError):  # one of them ends just now
            if found := settled():
                return found
        threading.Event().wait(0.01)  # another process's fork is no event that we could wait for
    raise AssertionError(f"they do not come back: {find()}, {host.lines[-1:]}")


def kill_at_once(pids: list[int]) -> None:
    """As if in one moment: none of them runs when the first one dies, nor is woken by it."""
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    for pid in pids:
        wait_stopped(pid)
    for pid in reversed(pids):  # from the bottom: the death of a parent would be a SIGCONT
        kill(pid)
    for pid in pids:
        assert wait_gone(pid)


def wait_none(find) -> None:
    for _ in range(int(PATIENCE_S / 0.01)):
        left = {pid for pid in find() if state_of(pid) not in ("", "Z", "X")}
        if not left:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{[Path(f'/proc/{pid}/cmdline').read_text() for pid in left]} are left")


@pytest.mark.parametrize("victims", [each for each in SUBSETS if "host" in each], ids="-".join)
def test_no_process_outlives_a_node_whatever_dies_with_its_host_in_the_same_moment(
    marked_host, victims
):
    host, find = marked_host
    pids = roles(host, find)
    kill_at_once([pids[role] for role in victims])
    host.popen.wait(PATIENCE_S)
    wait_none(find)
    host.wait_eof()


def test_whatever_dies_in_the_same_moment_below_a_host_is_replaced_and_ends_with_it(marked_host):
    """One life of a host, all subsets of the others. Nobody of any generation is left."""
    host, find = marked_host
    sent = 0
    for victims in SUBSETS:
        if "host" in victims:
            continue
        pids = roles(host, find)
        kill_at_once([pids[role] for role in victims])
        host.send(sent)
        sent += 1
        host.wait(lambda n=sent: len(host.outputs()) == n)
        if {"guardian", "zygote"} & set(victims):
            host.wait(lambda old=pids: host.lines[-1].get("zygote") not in (None, old["zygote"]))
    assert host.outputs() == ledger(sent)
    kill(host.popen.pid, signal.SIGTERM)
    assert host.popen.wait(PATIENCE_S) == 0
    wait_none(find)


# What the operator does to itself in __init__ that makes the kernel forget PDEATHSIG. Giving up root does, too.
FORGETS = "__import__('ctypes').CDLL(None).prctl(1, 0)"


@pytest.mark.parametrize("init", ["pass", FORGETS], ids=["as it is", "PDEATHSIG forgotten"])
def test_a_busy_worker_dies_with_the_zygote_although_nobody_is_there_to_kill_it(
    host_process, tmp_path, init
):
    """A worker in a handler does not see the end of its socket: only the kernel can end it here."""
    marker = tmp_path / "busy"
    host = host_process(
        f"""
        import time

        class Operator:
            def __init__(self):
                {init}

            def on_event(self, event, send_output):
                print("busy", file=open({str(marker)!r}, "w"))
                time.sleep(1000)
        """
    )
    status = host.wait_running()
    host.send(0)
    wait_file(marker)
    guardian = parent(status["zygote"])
    for pid in (host.popen.pid, guardian):
        kill(pid, signal.SIGSTOP)
        wait_stopped(pid)
    kill(status["zygote"])
    try:
        assert wait_gone(status["worker_pid"])
    finally:
        kill(status["worker_pid"])


def test_who_comes_after_the_death_of_its_parent_ends_at_once():
    """PDEATHSIG is not sent for a death that came before it was set."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            process.die_with_parent(parent=os.getpid())  # a pid that is not its parent's
            os.write(writer, b"goes on")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_a_stopped_zygote_does_not_keep_anything_alive(host_process):
    host = host_process()
    status = host.wait_running()
    family = wait_family(host.popen.pid, 4)
    kill(status["zygote"], signal.SIGSTOP)
    kill(host.popen.pid)
    for pid in family:
        assert wait_gone(pid)


def test_the_end_of_the_host_closes_the_nodes_output_also_when_the_operator_left_a_process(
    host_process, tmp_path
):
    """dora reports a node's end, and restarts it, only after EOF of its stdout and stderr.

    Zygote, guardian and host would kill what is left: killed in the same moment, they cannot.
    """
    pid_file = tmp_path / "pid"
    host = host_process(
        f"""
        import subprocess

        class Operator:
            def __init__(self):
                child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
                with open({str(pid_file)!r}, "w") as file:
                    print(child.pid, file=file)

            def on_event(self, event, send_output):
                return 0
        """
    )
    zygote = host.wait_running()["zygote"]
    left_behind = int(wait_file(pid_file))
    try:
        guardian = parent(zygote)
        kill(host.popen.pid, signal.SIGSTOP)
        kill(guardian, signal.SIGSTOP)
        kill(zygote)
        kill(guardian)
        assert wait_gone(guardian)
        kill(host.popen.pid)
        host.wait_eof()
        assert Path(f"/proc/{left_behind}").exists()  # it was not its end that closed the output
    finally:
        kill(left_behind)


# Starts what PDEATHSIG does not reach, and tells the pids.
STARTS_PROCESSES = """
    import os, subprocess

    SLEEP = ["sleep", "1000"]

    class Operator:
        def __init__(self):
            pids = [subprocess.Popen(SLEEP, start_new_session=True).pid, subprocess.Popen(SLEEP).pid]
            reader, writer = os.pipe()  # which exec closes
            if os.fork() == 0:
                if os.fork() == 0:
                    for depth in range(4):  # each is a subreaper's only when the one above is dead
                        os.setsid()
                        os.write(writer, b"%d " % os.getpid())
                        if depth == 3 or os.fork():
                            break
                    os.execvp(SLEEP[0], SLEEP)
                os._exit(0)
            os.close(writer)
            os.wait()
            with open(reader, "rb") as file:
                pids.extend(map(int, file.read().split()))
            with open({path!r}, "a") as file:
                print(*pids, file=file)

        def on_event(self, event, send_output):
            return 0
"""


@pytest.fixture
def starts_processes(host_process, tmp_path):
    """A host whose operator has started processes, its first status, and their pids."""
    path = tmp_path / "pids"
    host = host_process(STARTS_PROCESSES.format(path=str(path)))
    status = host.wait_running()
    pids = [int(pid) for pid in wait_file(path).split()]
    yield host, status, pids
    host.close()
    for pid in map(int, path.read_text().split()):
        kill(pid)


def kill_host(host: HostProcess, zygote: int) -> None:
    kill(host.popen.pid)


def kill_host_of_a_stopped_zygote(host: HostProcess, zygote: int) -> None:
    kill(zygote, signal.SIGSTOP)
    kill(host.popen.pid)


def hang_up(host: HostProcess, zygote: int) -> None:
    os.killpg(host.popen.pid, signal.SIGHUP)


def stop_in_order(host: HostProcess, zygote: int) -> None:
    kill(host.popen.pid, signal.SIGTERM)


def kill_the_group(host: HostProcess, zygote: int) -> None:
    """What dora does: host and zygote are dead in the same moment."""
    os.killpg(host.popen.pid, signal.SIGKILL)


def kill_all_python(host: HostProcess, zygote: int) -> None:
    """As `killall -9 python3`, all in the same moment."""
    family = sorted({host.popen.pid, *descendants(host.popen.pid)})
    named = [pid for pid in family if name_of(pid) == name_of(host.popen.pid)]
    assert {host.popen.pid, zygote} < set(named) < set(family)
    kill_at_once(named)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def kill_host_and_zygote(host: HostProcess, zygote: int) -> None:
    kill(host.popen.pid, signal.SIGSTOP)  # so that it cannot act between
    kill(zygote)
    kill(host.popen.pid)


def kill_guardian_and_host(host: HostProcess, zygote: int) -> None:
    guardian = parent(zygote)
    kill(host.popen.pid, signal.SIGSTOP)
    kill(guardian)
    kill(host.popen.pid)


def kill_host_of_a_stopped_guardian(host: HostProcess, zygote: int) -> None:
    kill(parent(zygote), signal.SIGSTOP)
    os.killpg(host.popen.pid, signal.SIGKILL)


def stop_in_order_with_a_stopped_guardian(host: HostProcess, zygote: int) -> None:
    kill(parent(zygote), signal.SIGSTOP)
    kill(host.popen.pid, signal.SIGTERM)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    "end",
    [
        kill_host,
        kill_host_of_a_stopped_zygote,
        hang_up,
        stop_in_order,
        kill_the_group,
        kill_all_python,
        kill_host_and_zygote,
        kill_guardian_and_host,
        kill_host_of_a_stopped_guardian,
        stop_in_order_with_a_stopped_guardian,
    ],
)
def test_what_the_operator_started_ends_with_the_host(starts_processes, end):
    host, status, pids = starts_processes
    end(host, status["zygote"])
    for pid in (*pids, status["zygote"]):
        assert wait_gone(pid)


def test_what_the_operator_started_ends_with_the_zygote(starts_processes):
    host, status, pids = starts_processes
    kill(status["zygote"])
    after = host.wait_running(after=status["incarnation"])
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()  # reaped, too
    kill(host.popen.pid, signal.SIGTERM)
    assert host.popen.wait(PATIENCE_S) == 0
    assert wait_gone(after["worker_pid"])


def test_what_the_operator_started_ends_also_when_the_zygote_dies_last(starts_processes):
    """The host is about to end: there is no new zygote before which it would look."""
    host, status, pids = starts_processes
    kill(host.popen.pid, signal.SIGSTOP)
    kill(host.popen.pid, signal.SIGTERM)
    kill(status["zygote"])
    assert wait_gone(status["worker_pid"])
    kill(host.popen.pid, signal.SIGCONT)
    assert host.popen.wait(PATIENCE_S) == 0
    for pid in pids:
        assert wait_gone(pid)


def test_children_stay_in_the_nodes_process_group(host_process):
    """dora's kills and its orphan guard go to the group."""
    host = host_process()
    status = host.wait_running()
    for pid in wait_family(host.popen.pid, 4):
        ours = parent(status["zygote"]) != pid  # the guardian must outlive what goes to the group
        assert (os.getpgid(pid) == host.popen.pid) == ours


@pytest.mark.parametrize("role", ["zygote", "guardian"])
def test_the_death_of_the_zygote_is_survived(host_process, role):
    host = host_process()
    first = host.wait_running()
    host.send(0, 1)
    host.wait(lambda: len(host.outputs()) == 2)
    kill(first["zygote"] if role == "zygote" else parent(first["zygote"]))
    host.wait(lambda: host.lines[-1].get("zygote") not in (None, first["zygote"]))
    host.send(2)
    host.wait(lambda: len(host.outputs()) == 3)
    assert host.outputs() == ledger(3)
    assert wait_gone(first["worker_pid"])


def test_a_host_that_was_killed_continues_with_its_state_and_its_numbers(host_process):
    first = host_process()
    first.wait_running()
    first.send(0, 1, 2)
    first.wait(lambda: len(first.outputs()) == 3)
    kill(first.popen.pid)
    first.popen.wait()

    second = host_process()
    status = second.wait_running()
    assert status["incarnation"] > 1
    second.send(3)
    second.wait(lambda: second.outputs())
    assert second.outputs() == ["3 4 6"]


def test_the_spare_and_what_it_left_are_gone_after_a_clean_end(host_process, tmp_path):
    """A process that the operator orphaned falls to the zygote, which kills it with its worker."""
    pid_file = tmp_path / "pid"
    host = host_process(
        f"""
        import os, time

        class Operator:
            def __init__(self):
                if os.fork() == 0:
                    if os.fork() == 0:
                        with open({str(pid_file)!r}, "w") as file:
                            print(os.getpid(), file=file)
                        time.sleep(1000)
                    os._exit(0)
                os.wait()

            def on_event(self, event, send_output):
                return 0
        """
    )
    host.wait_running()
    orphan = int(wait_file(pid_file))
    family = wait_family(host.popen.pid, 4)
    kill(host.popen.pid, signal.SIGTERM)
    host.popen.wait(PATIENCE_S)
    try:
        for pid in {*family, orphan}:
            assert wait_gone(pid)
    finally:
        kill(orphan)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_zygote_worker_and_spare_leave_stop_signals_to_the_host(host_process, number):
    host = host_process()
    first = host.wait_running()
    for pid in wait_family(host.popen.pid, 4):
        kill(pid, number)
    host.send(0, 1)
    host.wait(lambda: len(host.outputs()) == 2)
    kill(first["worker_pid"])
    second = host.wait_running(after=first["incarnation"])
    assert second["zygote"] == first["zygote"]
    assert second["restarts"] == 1


def test_a_subprocess_of_the_operator_can_still_be_terminated(host):
    """Ignored signals would be inherited through exec."""
    hosted = host(
        """
        import multiprocessing, subprocess, time

        class Operator:
            def on_event(self, event, send_output):
                child = subprocess.Popen(["sleep", "1000"])
                child.terminate()
                fork = multiprocessing.get_context("fork")
                forked = fork.Process(target=time.sleep, args=(1000,))
                forked.start()
                forked.terminate()
                forked.join()
                send_output("codes", b"%d %d" % (child.wait(), forked.exitcode))
                return 0
        """
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ["-15 -15"]


def test_sigterm_ends_the_host_in_order(host_process):
    host = host_process()
    host.wait_running()
    host.send(0)
    host.wait(lambda: host.outputs())
    kill(host.popen.pid, signal.SIGTERM)
    assert host.popen.wait(PATIENCE_S) == 0
    host.wait_eof()
    assert host.lines[-1]["clean"] is True


def test_an_operator_that_hangs_is_killed_when_the_grace_is_over(host_process, tmp_path):
    marker = tmp_path / "hangs"
    host = host_process(
        f"""
        import signal, time

        class Operator:
            def on_event(self, event, send_output):
                print("hangs", file=open({str(marker)!r}, "w"))
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
                send_output("hangs", b"hangs")
                send_output("hangs", b"hangs")
                time.sleep(1000)
        """,
        grace_s=0.2,
    )
    status = host.wait_running()
    host.send(0)
    wait_file(marker)
    kill(host.popen.pid, signal.SIGTERM)
    assert host.popen.wait(PATIENCE_S) == 0
    host.wait_eof()
    assert wait_gone(status["worker_pid"])
    assert host.lines[-1]["clean"] is False
    assert host.outputs() == []


# Forks


def test_the_zygote_has_one_thread_and_has_not_imported_dora(host_process):
    host = host_process()
    status = host.wait_running()
    assert len(os.listdir(f"/proc/{status['zygote']}/task")) == 1


def test_a_child_that_the_operator_forked_is_no_worker(host):
    """It can neither save nor send, and the worker's death is noticed though the child holds its
    socket.
    """
    hosted = host(
        """
        import os, time
        from dora_state.errors import StateError
        from dora_state.operator import save_state

        class Operator:
            def on_event(self, event, send_output):
                if event["attempt"] == 1:
                    reader, writer = os.pipe()
                    if os.fork() == 0:
                        told = []
                        for call in (lambda: save_state("a", b"1"), lambda: send_output("a", b"1")):
                            try:
                                call()
                                told.append("allowed")
                            except (StateError, OSError):
                                told.append("refused")
                        os.write(writer, " ".join(told).encode())
                        time.sleep(1000)
                    save_state("told", os.read(reader, 100), flush=True)
                    os.kill(os.getpid(), 9)
                return 0
        """
    ).start()
    hosted.send(0)
    hosted.finish()
    assert hosted.state() == {"told": b"refused refused"}
    assert hosted.texts == []


@pytest.mark.parametrize("standby", ["fork", "off"])
def test_what_a_forked_child_failed_with_is_not_what_its_parent_died_of(host, standby, capfd):
    """The successor is told so, also by the lifeline; what the child failed with is printed."""
    hosted = host(
        """
        import os
        from dora_state import restore_info

        class Operator:
            def on_event(self, event, send_output):
                if event["value"] == b"1" and event["attempt"] == 1:
                    if os.fork() == 0:
                        raise ValueError("in the child")
                    os.wait()
                    os.kill(os.getpid(), 9)
                send_output("why", restore_info().reason.encode())
                return 0
        """,
        standby=standby,
    ).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    if standby == "fork":
        hosted.wait_spare()
    hosted.send(1)
    assert hosted.wait_outputs(2) == ["start", "exit"]
    hosted.finish()
    assert "ValueError: in the child" in capfd.readouterr().err


# What the operator prints


def test_what_the_operator_prints_is_relayed(host_process, host, capfd):
    hosted = host(
        """
        import sys

        class Operator:
            def on_event(self, event, send_output):
                print("to stdout", flush=True)
                print("to stderr", file=sys.stderr)
                return 0
        """
    ).start()
    hosted.send(0)
    hosted.finish()
    captured = capfd.readouterr()
    assert "to stdout" in captured.out
    assert "to stderr" in captured.err


def test_printing_without_end_neither_blocks_the_operator_nor_floods_the_log(host, capfd):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                for _ in range(64):
                    print("x" * 500_000)
                send_output("done", b"done")
                return 0
        """
    ).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    printed = capfd.readouterr().out
    assert len(printed) < 16_000_000
    assert "[dora-state] dropped" in printed


@pytest.mark.parametrize("when", ["when it is quiet", "at the end"])
def test_what_was_dropped_is_told_also_when_nothing_more_is_printed(tmp_path, monkeypatch, when):
    monkeypatch.setattr(pipes, "QUIET_MS", 1 if when == "when it is quiet" else 1_000_000)
    monkeypatch.setattr(pipes, "RATE_BYTES", 0)
    seen = tmp_path / "seen"
    with seen.open("wb") as file:
        relay = pipes.Relay(file.fileno())
        for _ in range(64):
            os.write(relay.stdout, b"x" * 500_000)

        def count() -> int:
            """What has come, and what is said not to come."""
            told = re.findall(rb"dropped (\d+) bytes", said := seen.read_bytes())
            return said.count(b"x") + sum(map(int, told))

        deadline = time.monotonic() + PATIENCE_S
        while when == "when it is quiet" and count() < 64 * 500_000:
            assert time.monotonic() < deadline
        relay.close(PATIENCE_S)
        assert count() == 64 * 500_000


def test_a_segfault_leaves_its_traceback_in_the_log(host, capfd):
    hosted = host(kill="event@1=segv").start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    error = capfd.readouterr().err
    assert "Fatal Python error: Segmentation fault" in error
    assert "killpoint.py" in error


def state_of(pid: int) -> str:
    """As /proc says it; "Z" is a zombie, "" is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


KILLED_AT_THE_END = {
    "nobody": lambda guardian, zygote, worker: (),
    "the guardian": lambda guardian, zygote, worker: (guardian,),
    "the zygote": lambda guardian, zygote, worker: (zygote,),
    "guardian and zygote": lambda guardian, zygote, worker: (guardian, zygote),
    "all": lambda guardian, zygote, worker: (guardian, zygote, worker),
}


@pytest.mark.parametrize("victims", KILLED_AT_THE_END.values(), ids=KILLED_AT_THE_END.keys())
def test_the_end_has_reaped_everything_when_it_is_told(host, victims):
    """Looked at once, not after a while: who was told of the end may start the next node."""
    before = process.children()
    # Much to free: a process is not gone at once.
    heap = 'self.heap = bytearray(b"x") * (256 << 20); self.count = self.total = 0'
    hosted = host(LEDGER.replace("self.count = self.total = 0", heap)).start()
    hosted.wait_spare()
    guardian = hosted.supervisor.workers.births._zygote.guardian_pid
    zygote = hosted.supervisor.workers.births.zygote_pid
    family = {guardian, *descendants(guardian)}
    assert len(family) == 4
    for pid in victims(guardian, zygote, hosted.wait_running()["worker_pid"]):
        kill(pid)
    hosted.supervisor.request_stop()
    family |= descendants(os.getpid()) - before
    hosted.wait_end()
    left = {pid: state_of(pid) for pid in family}
    # Those that a killed guardian has left are reaped by whoever adopts orphans here.
    assert all(state in ("", "Z", "X") for state in left.values()), left
    assert process.children() <= before


def test_children_that_the_kernels_list_misses_are_ended_too():
    """proc(5): the list is reliable only while all children are stopped. Here it misses all but one."""
    code = """
import os, time
from dora_state.runtime import process
process.become_subreaper()
for number in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(1000)
        time.sleep(1000)
whole = process.children
process.children = lambda: set(list(whole())[:1]) if len(whole()) == 5 else set()
process.end_children()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "none\n", done.stderr
