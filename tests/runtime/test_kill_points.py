"""Death at named points of the host, and of a worker at any instruction of its commit.

The named points of a worker are in test_restart.py and test_shared_writes.py.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from hosting import LEDGER, PATIENCE_S, kill, ledger
from stepping import (
    COMMIT_POINTS,
    CommitWatch,
    attach_to_stopped,
    kill_traced,
    only_where_steps_work,
    step_to,
    steps,
    steps_in_the_engine,
)
from test_processes import HostProcess

from dora_state._core import Store
from dora_state.runtime import killpoint, step

NEW = 7


def test_every_named_point_of_the_code_is_one_that_the_tests_cycle_through():
    """They take the tuples of killpoint.py: a point that is in none of them would never be a place to die."""
    runtime = Path(killpoint.__file__).parent
    in_code = set()
    for path in runtime.glob("*.py"):
        in_code.update(re.findall(r'killpoint\.reach\(\s*"([^"]+)"', path.read_text()))
    cycled = (
        *killpoint.START_POINTS,
        *killpoint.EVENT_POINTS,
        *killpoint.SHARED_POINTS,
        *killpoint.RECOVERY_POINTS,
        *killpoint.HOST_POINTS,
    )
    assert in_code == set(cycled)


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


STEPS = 8


@only_where_steps_work
def test_death_at_the_named_points_of_a_commit_leaves_the_ledger_exact(host):
    """From word0 on it counts, and its event is not handled again, whatever had still to be done."""
    rounds = 2 * COMMIT_POINTS
    last = 2 * len(rounds) + 1
    hosted = host(kill=",".join(f"before-commit@{n}=stop" for n in range(2, last, 2))).start()
    incarnation = replayed = 0
    for n in range(1, last + 1):
        hosted.send(n - 1)
        if n % 2 == 0:
            point = rounds[n // 2 - 1]
            pid = attach_to_stopped(hosted, incarnation + 1)
            incarnation = hosted.statuses[-1]["incarnation"]
            step_to(pid, CommitWatch(hosted.store_path), point)
            kill_traced(pid)
            replayed += point == "before-word0"
        hosted.wait_outputs(n)
    hosted.finish()
    assert hosted.texts == ledger(last)
    assert int(hosted.state()["count"]) == last
    assert hosted.supervisor.restarts == len(rounds)
    assert hosted.statuses[-1]["replayed"] == replayed == 2


@only_where_steps_work
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
