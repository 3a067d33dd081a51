"""A state that cannot be restored (I31): the same twice, then the snapshots before it, then the end. Never
silently empty.
"""

from __future__ import annotations

import json
import threading

import pytest
from hosting import LEDGER, PATIENCE_S, Hosted, kill, ledger

from dora_state import Store
from dora_state.runtime import control, snapshot, step
from dora_state.runtime.policy import RestartPolicy

POLICY = RestartPolicy(restart_delay=0.0)

# LEDGER, but states whose count is named in BAD cannot be restored.
PICKY = LEDGER.replace(
    "self.count, self.total = int",
    "print('restore', int(state['count']), flush=True)\n"
    "            if int(state['count']) in BAD: HOW\n"
    "            self.count, self.total = int",
).replace("class Operator", "import os\n    class Operator")
HOW = {
    "an exception": "raise ValueError('cannot restore')",
    "abort": "os.abort()",
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "exit": "os._exit(0)",
}


def picky(*bad: int, how: str = "raise ValueError('cannot restore')") -> str:
    return PICKY.replace("BAD", repr(bad)).replace("HOW", how)


def take(hosted: Hosted) -> snapshot.Snapshot:
    """A snapshot now, as the keeper takes them once a minute."""
    with Store(hosted.store_path) as store:
        taken = snapshot.take(store)
        assert taken is not None
        return taken


def with_snapshots(host, *after: int, last: int, bad: tuple[int, ...] = (), **options) -> Hosted:
    """A host whose operator has handled 0 to last - 1, with snapshots after so many events."""
    hosted = host(picky(*bad, **options), policy=POLICY).start()
    for number in range(last):
        hosted.send(number)
        hosted.wait_outputs(number + 1)
        if number + 1 in after:
            take(hosted)
    return hosted


def restored(capfd) -> list[int]:
    """The counts of the states that were offered, in their order."""
    lines = capfd.readouterr().out.splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("restore ")]


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_i31_the_same_state_twice_then_the_one_before(host, capfd, caplog, how):
    hosted = with_snapshots(host, 2, 4, last=5, bad=(5,), how=how)
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(100)
    assert hosted.wait_outputs(6)[5:] == ["100 5 106"]  # 0 + 1 + 2 + 3, and 4 undone
    last = hosted.statuses[-1]
    assert (last["last_rollback"]["to"], last["last_rollback"]["undone"]) == (4, 1)
    hosted.finish()
    assert restored(capfd) == [5, 5, 4]
    assert hosted.state() == {"count": b"5", "total": b"106"}
    assert hosted.step().number == 6  # the number of the input is not rolled back
    assert "the effects of 1 later events are undone" in caplog.text


def test_i31_a_state_that_crashes_on_restore_backs_off(host):
    """The first restart after a failure is at once, the second is not."""
    policy = RestartPolicy(restart_delay=0.05, max_restore_attempts=0)
    hosted = host(kill="restore@2,restore@3", policy=policy).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(1)
    assert hosted.wait_outputs(2) == ledger(2)
    hosted.finish()
    waited_for = [each["restarts"] for each in hosted.statuses if each["state"] == "waiting"]
    assert set(waited_for) == {3}


def test_a_roll_back_restores_all_keys_and_removes_those_that_came_later(host):
    late = "if number == 2: save_state('late', b'x')\n                "
    source = picky(3).replace('save_state("count"', late + 'save_state("count"')
    hosted = host(source, policy=POLICY).start()
    for number in range(3):
        hosted.send(number)
        hosted.wait_outputs(number + 1)
        if number == 1:
            take(hosted)
    with Store(hosted.store_path, read_only=True) as store:
        assert "late" in store
    kill(hosted.wait_running()["worker_pid"])
    hosted.wait(lambda: hosted.statuses[-1]["last_rollback"])
    hosted.finish()
    assert hosted.state() == {"count": b"2", "total": b"1"}
    assert hosted.step().number == 3


def test_the_snapshots_are_offered_one_after_the_other_and_the_bad_ones_go(host, capfd):
    hosted = with_snapshots(host, 1, 2, 3, last=4, bad=(2, 3, 4))
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(100)
    assert hosted.wait_outputs(5)[4:] == ["100 2 100"]
    hosted.finish()
    assert restored(capfd) == [4, 4, 3, 3, 2, 2, 1]
    with Store(hosted.store_path) as store:
        assert [each.number for each in snapshot.kept(store)] == [1]


def test_without_a_state_that_can_be_restored_it_stops_and_keeps_what_it_has(host, capfd):
    hosted = with_snapshots(host, 2, last=3, bad=(2, 3))
    kill(hosted.wait_running()["worker_pid"])
    outcome = hosted.wait_end()
    assert (outcome.clean, outcome.failed) == (False, True)
    assert outcome.why == "the saved state cannot be restored"
    assert hosted.statuses[-1]["why"] == "the saved state cannot be restored"
    assert hosted.statuses[-1]["state"] == "ended"
    assert restored(capfd) == [3, 3, 2, 2]
    assert hosted.state() == {"count": b"3", "total": b"3"}
    # The next host offers the last one again: perhaps the code is mended.
    second = host(picky(), policy=POLICY).start()
    second.send(3)
    assert second.wait_outputs(1) == ["3 4 6"]


def test_one_failure_alone_rolls_nothing_back(host, tmp_path):
    source = picky(5, how=f"open({str(tmp_path / 'once')!r}, 'x').close(); raise ValueError")
    source = source.replace(
        "in (5,)", f"in (5,) and not os.path.exists({str(tmp_path / 'once')!r})"
    )
    hosted = host(source, policy=POLICY).start()
    hosted.send(*range(5))
    hosted.wait_outputs(5)
    take(hosted)
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(5)
    assert hosted.wait_outputs(6) == ledger(6)
    assert hosted.statuses[-1]["last_rollback"] is None


def test_validate_state_that_raises_is_a_failure_to_restore(host, capfd):
    source = picky() + (
        "\n        def validate_state(self):\n"
        "            if self.count == 3: raise ValueError('three is no count')\n"
    )
    hosted = host(source, policy=POLICY).start()
    for number in range(3):
        hosted.send(number)
        hosted.wait_outputs(number + 1)
        if number == 1:
            take(hosted)
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(100)
    assert hosted.wait_outputs(4)[3:] == ["100 3 101"]
    assert hosted.statuses[-1]["last_crash"]["reason"] == (
        "exception in restore_state: ValueError: three is no count"
    )
    hosted.finish()
    assert restored(capfd) == [3, 3, 2]


def test_a_snapshot_that_is_damaged_is_not_offered_to_the_operator(host, capfd):
    hosted = with_snapshots(host, 1, 2, last=3, bad=(3,))
    with Store(hosted.store_path) as store:
        newest = snapshot.kept(store)[0]
        batch = store._batch()
        content, _ = store._get(snapshot.RUNTIME, newest.key)
        assert content.count(b"2") == 1
        batch.put(newest.key, content.replace(b"2", b"7"), snapshot.RUNTIME)  # of 2 events, not 7
        batch.commit()
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(100)
    assert hosted.wait_outputs(4)[3:] == ["100 2 100"]
    hosted.finish()
    assert restored(capfd) == [3, 3, 1]


@pytest.mark.parametrize("point", ["restore", "after-restore", "after-restore-commit"])
def test_a_death_within_a_roll_back_does_it_again(host, point):
    """The incarnation that is offered the snapshot dies; where, is named."""
    first = with_snapshots(host, 2, last=3)
    first.finish()
    with Store(first.store_path) as store:
        before = max(store.stats()["fence"], step.read(store).incarnation)
    # Two are offered the last state, the third is the first to get the snapshot.
    kills = f"{point}@{before + 3}=abort"
    second = host(picky(3), policy=POLICY, kill=kills, standby="off")
    second.start()
    second.send(100)
    assert second.wait_outputs(1) == ["100 3 101"]
    second.finish()
    assert second.step().number == 4
    assert second.supervisor.restarts == 3


# Snapshots


def test_a_snapshot_is_taken_when_an_incarnation_has_run_for_a_period(host):
    taken = threading.Event()
    hosted = host(policy=POLICY, snapshot_period_s=0.01)
    hosted.start()
    hosted.send(0, 1)
    hosted.wait_outputs(2)
    for _ in range(int(PATIENCE_S / 0.01)):
        with Store(hosted.store_path, read_only=True) as store:
            known = snapshot.kept(store)
            if known and known[0].number == 2:
                assert snapshot.load(store, known[0].id) == {"count": b"2", "total": b"1"}
                taken.set()
                break
        threading.Event().wait(0.01)
    assert taken.is_set()
    hosted.finish()


def test_snapshots_are_kept_three_and_only_when_something_is_new(tmp_path):
    with Store(tmp_path / "store") as store:
        assert snapshot.take(store) is None  # there is nothing
        for number in range(1, 6):
            step.commit(store, {"n": b"%d" % number}, step.Step(number))
            assert snapshot.take(store) is not None
            assert snapshot.take(store) is None
        known = snapshot.kept(store)
        assert [each.number for each in known] == [5, 4, 3]
        assert [snapshot.load(store, each.id) for each in known] == [
            {"n": b"5"},
            {"n": b"4"},
            {"n": b"3"},
        ]
        assert store.stats()["runtime_keys"] == 5  # three, their list, the step


def test_a_state_that_is_too_large_for_a_snapshot_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "LIMIT_BYTES", 1 << 20)
    with Store(tmp_path / "store") as store:
        store.put("big", bytes(2 << 20))
        with pytest.raises(snapshot.StateError, match="larger than 1 MiB"):
            snapshot.take(store)


# What the operator is told


TELLS = LEDGER.replace(
    "def on_event(self, event, send_output):",
    "def on_event(self, event, send_output):\n"
    "            info = dora_state.restore_info()\n"
    "            send_output('info', json.dumps(dataclasses.asdict(info)).encode())",
).replace("class Operator", "import dataclasses, json, dora_state\n    class Operator")


def infos(hosted: Hosted) -> list[dict[str, object]]:
    return [json.loads(bytes(out.value)) for out in hosted.outputs if out.id == "info"]


def test_the_operator_is_told_why_it_was_started(host):
    hosted = host(TELLS, kill="event@2=raise", policy=POLICY).start()
    hosted.send(0)
    hosted.wait_outputs(2)
    assert infos(hosted)[0] == {
        "reason": "start",
        "detail": "",
        "incarnation": 1,
        "replayed": 0,
        "dropped": {},
        "rolled_back_to": None,
        "undone": 0,
    }
    hosted.send(1)
    hosted.wait_outputs(4)
    told = infos(hosted)[1]
    assert told["reason"] == "exception"
    assert told["detail"] == "exception in event: KilledError: a kill point"
    assert told["replayed"] == 1
    assert told["incarnation"] > 1


def test_the_operator_is_told_what_was_dropped_while_it_was_away(host, tmp_path):
    trouble = tmp_path / "trouble"
    source = TELLS.replace(
        "def __init__(self):",
        "def __init__(self):\n            import os\n"
        f"            assert not os.path.exists({str(trouble)!r})",
    )
    policy = RestartPolicy(max_restarts=1, restart_delay=0.0, degraded_retry=3600.0)
    hosted = host(source, policy=policy, queue_sizes={"in": 2}).start()
    hosted.send(0)
    hosted.wait_outputs(2)
    trouble.touch()
    kill(hosted.wait_running()["worker_pid"])
    hosted.wait(lambda: hosted.statuses[-1]["state"] == "degraded")
    hosted.send(*range(1, 6))
    trouble.unlink()
    control.ask(control.path_beside(hosted.store_path), {"do": "reload"}, PATIENCE_S)
    hosted.wait_outputs(6)
    told = infos(hosted)[-1]
    assert (told["dropped"], told["replayed"]) == ({"in": 3}, 0)
    kill(hosted.wait_running()["worker_pid"])
    hosted.wait_running(told["incarnation"] + 1)
    hosted.send(6)
    hosted.wait_outputs(8)
    assert infos(hosted)[-1]["dropped"] == {}  # this one was told already


def test_the_operator_is_told_that_it_was_rolled_back(host):
    source = TELLS.replace(
        "self.count, self.total = int",
        "assert int(state['count']) != 3\n            self.count, self.total = int",
    )
    hosted = host(source, policy=POLICY).start()
    for number in range(3):
        hosted.send(number)
        hosted.wait_outputs(2 * number + 2)
        if number == 0:
            take(hosted)
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(3)
    hosted.wait_outputs(8)
    told = infos(hosted)[-1]
    assert (told["rolled_back_to"], told["undone"]) == (1, 2)


def test_restore_info_outside_of_an_operator_says_so():
    import dora_state
    from dora_state.errors import OperatorError

    with pytest.raises(OperatorError, match="restore_info works in an operator"):
        dora_state.restore_info()
