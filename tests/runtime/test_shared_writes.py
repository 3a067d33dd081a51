"""With `shared_writes = "commit"` what a handler does to the shared store happens exactly once, like its saves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hosting import (
    LEDGER,
    PATIENCE_S,
    Hosted,
    kill,
    kill_at_random,
    ledger,
    wait_gone,
    wait_stopped,
)

from dora_state import Store
from dora_state._core import RUNTIME
from dora_state.errors import Fenced, OperatorError
from dora_state.runtime import killpoint, shared_step, step
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.shared_step import SharedSteps
from dora_state.shared_writes import Staged

KILLS = int(os.environ.get("DORA_STATE_TEST_KILLS", "20"))

# As LEDGER, and the same account once more in the shared store.
COUNTS = LEDGER.replace(
    "class Operator:",
    "from dora_state import kvs_read, kvs_update, kvs_write\n\n"
    '    class Operator:\n        shared_writes = "commit"\n',
).replace(
    'send_output("sum"',
    'kvs_update("count", lambda old: b"%d" % (int(old) + 1), default=b"0")\n'
    '                kvs_write("last", event["value"])\n'
    '                send_output("sum"',
)


@pytest.fixture
def shared(tmp_path):
    path = tmp_path / "shared"
    Store(path).close()
    return path


@pytest.fixture
def counting(host, shared):
    """Hosts an operator whose shared store is `shared`."""

    def make(source: str = COUNTS, **options):
        return host(source, environment={"DORA_STATE_SHARED": str(shared)}, **options)

    return make


def read(shared: Path) -> dict[str, bytes]:
    with Store(shared) as store:
        return store.snapshot()


def assert_exact(hosted, shared: Path, count: int) -> None:
    assert hosted.texts == ledger(count)
    assert hosted.state()["count"] == b"%d" % count
    assert read(shared) == {"count": b"%d" % count, "last": b"%d" % (count - 1)}
    with Store(hosted.store_path) as store:
        assert store._get(RUNTIME, shared_step.KEY) is None, "a prepare was left behind"


POINTS = ("output", *killpoint.SHARED_POINTS, "before-commit", "after-commit", "after-ack")


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_step_leaves_both_stores_exact(counting, shared, point):
    hosted = counting(kill=f"{point}@1,{point}@3").start()
    hosted.send(*range(4))
    assert hosted.wait_outputs(4) == ledger(4)
    hosted.finish()
    assert_exact(hosted, shared, 4)
    assert hosted.supervisor.account.restarts == 2


@pytest.mark.parametrize("recovery", killpoint.RECOVERY_POINTS)
@pytest.mark.parametrize("point", ["after-prepare", "after-marker"])
def test_a_death_while_recovering_leaves_both_stores_exact(counting, shared, point, recovery):
    hosted = counting(kill=f"{point}@2,{recovery}@2,{recovery}@3").start()
    hosted.send(*range(3))
    assert hosted.wait_outputs(3) == ledger(3)
    hosted.finish()
    assert_exact(hosted, shared, 3)
    assert hosted.supervisor.account.restarts >= 2


def test_every_point_in_one_life(counting, shared):
    names = killpoint.SHARED_POINTS * 4
    points = [f"{name}@{2 * n}" for n, name in enumerate(names, start=1)]
    hosted = counting(kill=",".join(points)).start()
    hosted.send(*range(30))
    assert hosted.wait_outputs(30) == ledger(30)
    hosted.finish()
    assert_exact(hosted, shared, 30)
    assert hosted.supervisor.account.restarts == len(points)


def test_random_kills_leave_both_stores_exact(counting, shared):
    hosted = counting().start()
    events = kill_at_random(hosted, KILLS)
    assert hosted.wait_outputs(events) == ledger(events)
    hosted.finish()
    assert_exact(hosted, shared, events)


def test_nothing_is_visible_before_the_commit_but_to_the_handler_itself(counting, shared):
    hosted = counting(
        f"""
        import subprocess, sys
        from dora_state import Store, kvs_batch, kvs_delete, kvs_keys, kvs_read, kvs_write

        def others():
            code = "import dora_state; print(sorted(dora_state.Store({str(shared)!r}).items()))"
            return subprocess.check_output([sys.executable, "-c", code]).strip()

        class Operator:
            shared_writes = "commit"

            def __init__(self):
                kvs_write("by init", b"at once")

            def on_event(self, event, send_output):
                kvs_write("a", b"1")
                kvs_write("b", b"2")
                with kvs_batch() as batch:
                    batch.put("c", bytearray(b"3"))
                    batch.delete("b")
                assert kvs_delete("by init") and not kvs_delete("nothing")
                assert kvs_read("b", None) is None
                seen = [(key, kvs_read(key)) for key in kvs_keys()]
                send_output("seen", repr(seen).encode())
                send_output("others", others())
                return 0
        """
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(2) == [
        "[('a', b'1'), ('c', b'3')]",
        "[('by init', b'at once')]",
    ]
    hosted.finish()
    assert read(shared) == {"a": b"1", "c": b"3"}


EXPECTS = """
    from dora_state import (
        kvs_batch, kvs_compare_and_write, kvs_delete, kvs_entry, kvs_read, kvs_update, kvs_wait, kvs_write
    )
    from dora_state.errors import Conflict

    def works(expected, key):
        try:
            kvs_compare_and_write(key, b"compared", expected)
        except Conflict as conflict:
            assert conflict.sequence == (0 if kvs_read(key, None) is None else kvs_entry(key).sequence)
            return False
        return True

    def claims():
        batch = kvs_batch()
        batch.expect("result", 0)
        batch.put("owner", b"me", expected=0)
        try:
            return batch.commit()
        except Conflict:
            return 0

    class Operator:
        shared_writes = "{mode}"

        def on_event(self, event, send_output):
            seen = [
                works(kvs_write("there", b"1"), "there"),
                works(kvs_write("new", b"1"), "new"),
                works(0, "new"),
                works(kvs_entry("new").sequence, "new"),
                works(kvs_compare_and_write("other", b"", 0), "other"),
                kvs_delete("there") and works(0, "there"),
                kvs_delete("there") and works(kvs_write("there", b"") - 1, "there"),
                kvs_update("counted", lambda n: n + b"1", default=b""),
                works(0, "counted"),
            ]
            ours = claims()
            seen += [bool(ours), bool(claims()), works(ours, "owner"), works(ours, "owner")]
            kvs_delete("owner")
            seen += [bool(claims()), kvs_wait("owner", after=kvs_write("owner", b""), timeout=0)]
            send_output("seen", repr(seen).encode())
            return 0
"""


@pytest.mark.parametrize("mode", ["at-once", "commit"])
def test_what_the_handler_wrote_itself_can_be_expected(counting, shared, mode):
    """The same answers as if each call had been a commit of its own."""
    with Store(shared) as store:
        store["there"] = b"0"
    hosted = counting(EXPECTS.replace("{mode}", mode)).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    yes, no = True, False
    expected = [yes, yes, no, yes, yes, yes, no, b"1", no, yes, no, yes, no, yes, None]
    assert hosted.texts == [repr(expected)]
    assert read(shared) == {
        **{"there": b"", "new": b"compared", "other": b"compared"},
        **{"counted": b"1", "owner": b""},
    }


def test_a_child_that_the_handler_forks_writes_at_once(counting, shared):
    """What it staged, nobody would commit."""
    hosted = counting(
        """
        import os
        from dora_state import kvs_write

        class Operator:
            shared_writes = "commit"

            def on_event(self, event, send_output):
                kvs_write("parent", b"")
                child = os.fork()
                if child == 0:
                    kvs_write("child", b"")
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
                return 0
        """
    ).start()
    hosted.send(0)
    hosted.finish()
    assert read(shared) == {"parent": b"", "child": b""}


def test_a_time_to_live_begins_with_the_commit_and_bad_input_is_refused_at_the_call(
    counting, shared
):
    hosted = counting(
        """
        import time
        from dora_state import kvs_batch, kvs_compare_and_write, kvs_read, kvs_store, kvs_update, kvs_write

        class Operator:
            shared_writes = "commit"

            def on_event(self, event, send_output):
                kvs_write("short", b"1", ttl=0.01)
                kvs_update("long", lambda old: b"1", ttl=1000)
                time.sleep(0.02)
                assert kvs_read("short") == b"1"
                for key, value, options in [
                    (5, b"", {}), ("a", 5, {}), ("a", "text", {}), ("a", b"", {"ttl": -1}), ("\\ud800", b"", {})
                ]:
                    for call in (kvs_write, lambda *a, **o: kvs_compare_and_write(*a, 0, **o), kvs_batch().put):
                        try:
                            call(key, value, **options)
                        except (TypeError, ValueError):
                            continue
                        raise AssertionError(f"{call} takes {key!r}, {value!r}, {options}")
                kvs_store()["directly"] = b"at once"
                send_output("keys", repr(sorted(kvs_store())).encode())
                return 0
        """
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ["['directly']"]
    hosted.finish()
    with Store(shared) as store:
        assert store["long"] == b"1"
        assert store.wait("short", after=0, timeout=0) is not None, "it was never written"
        deadline = time.monotonic() + PATIENCE_S
        while "short" in store:
            assert time.monotonic() < deadline, "it does not expire"
            time.sleep(0.002)


def test_an_exception_discards_the_shared_writes_too(counting, shared):
    hosted = counting(
        """
        from dora_state import kvs_write

        class Operator:
            shared_writes = "commit"

            def on_event(self, event, send_output):
                kvs_write("attempt %d" % event["attempt"], b"")
                if event["attempt"] < 3:
                    raise ValueError
                return 0
        """
    ).start()
    hosted.send(0)
    hosted.finish()
    assert list(read(shared)) == ["attempt 3"]


def test_by_default_a_shared_write_is_visible_at_once(counting, shared):
    hosted = counting(
        COUNTS.replace('shared_writes = "commit"', ""), kill="before-commit@1"
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ledger(1)
    assert read(shared)["count"] == b"2"  # at-least-once


# Conflicts: another process writes between the handler's read and its commit.

MEDDLES = """
    import subprocess, sys
    from dora_state import {call}, save_state

    class Operator:
        shared_writes = "commit"
        total = 0

        def on_event(self, event, send_output):
            self.total += 1
            {act}
            save_state("total", b"%d" % self.total)
            if event["attempt"] == 1:
                subprocess.run([sys.executable, "-c", {meddle!r}], check=True)
            send_output("done", b"%d" % self.total)
            return 0
"""
ACTS = {
    "kvs_update": 'kvs_update("n", lambda old: b"%d" % (int(old) + 1), default=b"0")',
    "kvs_delete": 'kvs_delete("n")',
    "kvs_compare_and_write": 'kvs_compare_and_write("n", b"mine", kvs_entry("n").sequence)',
    "kvs_batch": 'entry = kvs_entry("n")\n            with kvs_batch() as batch:\n'
    '                batch.put("n", b"mine", expected=entry.sequence)',
}
EXPECTED = {
    "kvs_update": b"101",
    "kvs_delete": None,
    "kvs_compare_and_write": b"mine",
    "kvs_batch": b"mine",
}


@pytest.mark.parametrize("call", ACTS)
def test_a_conflict_runs_the_handler_again_and_charges_nobody(counting, shared, call):
    with Store(shared) as store:
        store["n"] = b"50"
    meddle = f"import dora_state; dora_state.Store({str(shared)!r})['n'] = b'100'"
    names = call if call in ("kvs_update", "kvs_delete") else f"{call}, kvs_entry"
    source = MEDDLES.format(call=names, act=ACTS[call], meddle=meddle)
    # A policy that allows no restart at all.
    hosted = counting(source, policy=RestartPolicy(restart_policy="never")).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ["1"], "the state of the run in conflict is gone with it"
    assert hosted.finish().clean
    assert read(shared).get("n") == EXPECTED[call]
    assert hosted.state() == {"total": b"1"}
    assert (hosted.supervisor.account.conflicts, hosted.supervisor.account.restarts) == (1, 0)


def test_the_sequence_of_a_staged_write_is_over_with_its_handler(counting, shared):
    """What a write was given is found out by reading, once it is committed."""
    hosted = counting(
        """
        from dora_state import kvs_compare_and_write, kvs_entry, kvs_write
        from dora_state.errors import Conflict

        class Operator:
            shared_writes = "commit"

            def on_event(self, event, send_output):
                if event["id"] == "write":
                    self.got = kvs_write("n", b"1")
                    return 0
                try:
                    kvs_compare_and_write("n", b"lost", expected=self.got)
                except Conflict as error:
                    now = kvs_entry("n").sequence
                    assert error.sequence == now > 0
                    kvs_compare_and_write("n", b"2", expected=now)
                    send_output("refused", b"")
                return 0
        """
    ).start()
    hosted.send(0, id="write")
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    assert read(shared) == {"n": b"2"}
    assert hosted.supervisor.account.conflicts == 0


def test_a_handler_that_conflicts_with_itself_is_told_in_the_log(counting, caplog):
    hosted = counting(
        """
        from dora_state import kvs_store, kvs_update

        class Operator:
            shared_writes = "commit"

            def on_event(self, event, send_output):
                kvs_update("n", lambda old: old + b"1", default=b"")
                if event["attempt"] <= 11:
                    kvs_store()["n"] = b"at once"
                send_output("attempt", b"%d" % event["attempt"])
                return 0
        """
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ["12"]
    hosted.finish()
    [told] = [each for each in caplog.messages if "conflicts" in each]
    assert told.startswith("event 1 has run into 10 conflicts, and is tried on: ")
    assert "the key is at sequence" in told


def test_a_blind_write_does_not_conflict(counting, shared):
    meddle = f"import dora_state; dora_state.Store({str(shared)!r})['n'] = b'100'"
    source = MEDDLES.format(call="kvs_write", act='kvs_write("n", b"mine")', meddle=meddle)
    hosted = counting(source).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    assert read(shared)["n"] == b"mine"
    assert hosted.supervisor.account.conflicts == 0


ANOTHER = """
import sys
import dora_state
with dora_state.Store(sys.argv[1]) as store:
    for _ in range(int(sys.argv[2])):
        store.modify("count", lambda old: b"%d" % (int(old or b"0") + 1))
"""


def test_two_operators_and_another_process_count_on_one_key(shared, tmp_path):
    """Each runs into conflicts with the others, and both operators are killed at every step meanwhile.

    The ledger of processes is exact, too: each operator writes down what has ended its predecessor, and at which event.
    That is a kill where one was armed, but for first attempts that ran into a conflict: they get no further than
    after-prepare, and only first attempts die.
    """
    events, with_kills = 60, killpoint.SHARED_POINTS * 4
    armed = {3 + 4 * n: point for n, point in enumerate(with_kills)}  # by the number of the event
    with contextlib.ExitStack() as stack:
        operators = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            hosted = Hosted(
                tmp_path / name,
                COUNTS.replace(
                    "number = int(event",
                    f"""with open({str(tmp_path / name / "journal")!r}, "a") as file:
                    print(int(event["value"]) + 1, os.getpid(), restore_info().reason, file=file)
                number = int(event""",
                ).replace(
                    "from dora_state import kvs_read",
                    "import os; from dora_state import restore_info, kvs_read",
                ),
                kill=",".join(f"{point}@{number}" for number, point in armed.items()),
                node_id=name,
                environment={"DORA_STATE_SHARED": str(shared)},
            )
            stack.callback(hosted.close)
            operators.append(hosted.start())
        command = [sys.executable, "-c", ANOTHER, str(shared), "1000"]
        other = stack.enter_context(subprocess.Popen(command))
        stack.callback(other.kill)
        for number in range(events):
            for hosted in operators:
                hosted.send(number)
        for hosted in operators:
            assert hosted.wait_outputs(events) == ledger(events)
            hosted.finish()
            account = hosted.supervisor.account
            killed, conflicts = what_ended_processes(hosted.operator.with_name("journal"))
            outrun = {n for n in conflicts if armed.get(n) == "after-marker"}
            assert sorted(killed) == sorted(armed.keys() - outrun), "each died once, and no other"
            assert account.restarts == len(killed)
            assert account.conflicts == len(conflicts)
        assert other.wait(PATIENCE_S) == 0
    assert read(shared)["count"] == b"%d" % (2 * events + 1000)


def what_ended_processes(journal: Path) -> tuple[list[int], list[int]]:
    """At which events kills ended them, and at which ones conflicts."""
    killed, conflicts = [], []
    last, last_pid = 0, ""
    for line in journal.read_text().splitlines():
        number, pid, reason = line.split()
        if pid != last_pid and last:
            {"exit": killed, "conflict": conflicts}[reason].append(last)
        assert last <= int(number) <= last + 1
        last, last_pid = int(number), pid
    return killed, conflicts


# The host dies between the steps; its worker stands still there, and dies with it.


@pytest.mark.parametrize(
    ("point", "handled"), [("after-prepare", 1), ("after-marker", 2)], ids=["discards", "finishes"]
)
def test_the_next_host_finishes_or_discards_what_the_last_one_left(
    host, shared, tmp_path, point, handled
):
    (tmp_path / "op.py").write_text(textwrap.dedent(COUNTS))
    store = tmp_path / "store"
    program = Path(__file__).with_name("host_process.py")
    environment = {
        **os.environ,
        "DORA_STATE_SHARED": str(shared),
        "DORA_STATE_KILL": f"{point}@2=stop",
    }
    with subprocess.Popen(
        [sys.executable, program, tmp_path / "op.py", store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        try:
            process.stdin.write("0\n1\n")
            process.stdin.flush()
            pid = next(
                found for line in process.stdout if (found := json.loads(line).get("worker_pid"))
            )
            wait_stopped(pid)
        finally:
            process.kill()
    assert wait_gone(pid)
    with Store(store) as private:
        assert shared_step.pending_number(private) == 2
        assert step.read(private).number == 1

    hosted = host(COUNTS, environment={"DORA_STATE_SHARED": str(shared)}).start()
    hosted.send(handled)
    assert hosted.wait_outputs(1) == [ledger(handled + 1)[-1]]
    hosted.finish()
    assert hosted.step().number == 3, "a number is never given twice"
    assert read(shared)["count"] == hosted.state()["count"] == b"%d" % (handled + 1)


# A stale worker, without processes: all that it could still do between two steps.


def test_a_worker_that_was_replaced_can_neither_prepare_nor_decide(shared, tmp_path, monkeypatch):
    staged = Staged()
    with Store(shared) as seen:
        staged.over(seen)
        staged.put("count", b"stale")
        staged.close()
        with Store(tmp_path / "store", incarnation=1) as old, Store(tmp_path / "store") as host:
            worker = SharedSteps(old, "node")
            monkeypatch.delenv("DORA_STATE_SHARED", raising=False)

            def taken_over(name: str, number: int) -> None:
                if name == "after-prepare":  # it is stopped here, and meanwhile:
                    host.fence(2)
                    assert shared_step.recover(host, "node", 2)

            monkeypatch.setattr(killpoint, "reach", taken_over)
            with pytest.raises(Fenced, match="another worker of this operator has taken over"):
                worker.commit(staged, {"saved": b"stale"}, step.Step(1, 1))
            with pytest.raises(Fenced):
                worker.commit(staged, {"saved": b"stale"}, step.Step(1, 1))
            worker.close()
            assert host.snapshot() == {}
        assert seen.snapshot() == {}


def test_a_shared_store_that_is_gone_is_no_reason_to_forget(counting, shared, caplog):
    """A prepare without its shared store cannot be decided; the operator waits for the store instead."""
    policy = RestartPolicy(max_restarts=1, restart_delay=0.001, degraded_retry=0.001)
    hosted = counting(kill="after-marker@1=stop", policy=policy).start()
    hosted.send(0)
    pid = hosted.wait_running()["worker_pid"]
    wait_stopped(pid)
    aside = shared.rename(shared.with_name("aside"))
    kill(pid)
    hosted.wait(lambda: any(status["state"] == "degraded" for status in hosted.statuses))
    assert hosted.texts == []
    aside.rename(shared)
    assert hosted.wait_outputs(1) == ledger(1)
    hosted.finish()
    assert_exact(hosted, shared, 1)


def test_an_unknown_mode_is_refused_with_the_file(host):
    with pytest.raises(
        OperatorError, match="shared_writes is 'often'; use one of 'at-once', 'commit'"
    ):
        host(COUNTS.replace('"commit"', '"often"')).start()
