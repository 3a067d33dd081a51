"""Typed state across real kills: what the fields hold is what the last committed event left."""

from __future__ import annotations

import signal
import textwrap

import pytest
from hosting import kill

from dora_state import Store, typed_state
from dora_state.runtime import killpoint, snapshot
from dora_state.runtime.policy import RestartPolicy

pytest.importorskip("numpy")

# Sums in floating point, so that a wrong order or a lost bit shows. Each event changes an array in place, appends to
# a list, sets one entry of a map and goes through all of it.
OPERATOR = """
    import numpy as np
    from dora_state import save_state, state

    class Operator:
        count: int = state(0)
        mean = state(np.zeros(3))
        last: list = state([])
        cells: dict[tuple, float] = state({}, keyed=True)

        def on_event(self, event, send_output):
            if event["type"] == "INPUT":
                number = int(event["value"])
                self.count += 1
                self.mean += (np.sqrt([number, number + 0.1, number + 0.2]) - self.mean) / self.count
                self.last.append(number)
                del self.last[:-3]
                self.cells.pop((number - 5, "x"), None)
                self.cells[number, "x"] = number / 3
                total = 0.0
                for value in self.cells.values():
                    total = total * 0.7 + value
                send_output("out", b"%d %d %s %a %a" % (
                    number, self.count, self.mean.tobytes().hex().encode(), self.last, total))
            return 0
"""


def reference(count: int, source: str = OPERATOR) -> list[str]:
    """What the operator says when nobody kills it."""
    scope: dict = {}
    exec(textwrap.dedent(source), scope)
    operator, said = scope["Operator"](), []
    for n in range(count):
        event = {"type": "INPUT", "value": b"%d" % n}
        operator.on_event(event, lambda id, data: said.append(data.decode()))
    return said


POINTS = [f"{name}@{n}" for name in killpoint.EVENT_POINTS for n in (1, 4)]
POINTS += [
    f"event@2,{name}@2"
    for name in ("init", "after-init", "restore", "after-restore", "after-restore-commit")
]


@pytest.mark.parametrize("point", POINTS)
def test_death_at_a_named_point_changes_no_bit(host, point):
    hosted = host(OPERATOR, kill=point).start()
    hosted.send(*range(10))
    assert hosted.wait_outputs(10) == reference(10)
    hosted.finish()
    values, version = typed_state.unpack(hosted.state())
    assert (version, values["count"], values["last"]) == (1, 10, [7, 8, 9])
    assert list(values["cells"]) == [(n, "x") for n in range(5, 10)]


def test_many_kills_change_no_bit(host):
    hosted = host(OPERATOR, standby="fork").start()
    incarnation = 1
    for n in range(0, 200, 10):
        running = hosted.wait_running(incarnation)
        incarnation = running["incarnation"] + 1
        hosted.send(*range(n, n + 10))
        hosted.wait_outputs(n + 1)
        kill(running["worker_pid"], signal.SIGKILL)
    assert hosted.wait_outputs(200) == reference(200)
    assert hosted.finish().clean
    assert hosted.texts == reference(200)


def test_an_event_writes_only_the_keys_that_it_changed(host):
    hosted = host(
        """
        import numpy as np
        from dora_state import state

        class Operator:
            count: int = state(0)
            map = state(np.zeros(100_000))
            cells: dict[int, bytes] = state({n: bytes(100) for n in range(1000)}, keyed=True)

            def on_event(self, event, send_output):
                self.count += 1
                self.cells[self.count] = b"x"
                send_output("done", b"%d" % self.count)
                return 0
        """
    ).start()
    store = hosted.machine.store
    after = store.stats()["sequence"]
    hosted.send(*range(3))
    hosted.wait_outputs(3)
    hosted.finish()
    with Store(hosted.store_path) as store:
        changed = [sorted(keys) for _, keys in store.changes(after=after)]
    assert changed == [["@cells[1]", "@count"], ["@cells[2]", "@count"], ["@cells[3]", "@count"]]


def test_restore_state_comes_after_the_fields_and_may_change_them(host):
    hosted = host(
        """
        from dora_state import save_state, state

        class Operator:
            total: int = state(0)
            restores: int = state(0)

            def restore_state(self, saved):
                assert list(saved) == ["plain"], saved
                self.half = self.total / 2
                self.restores += 1

            def on_event(self, event, send_output):
                self.total += 10
                save_state("plain", b"1")
                send_output("out", b"%d %d %s" % (
                    self.total, self.restores, str(getattr(self, "half", None)).encode()))
                return 0
        """,
        kill="after-ack@1",
    ).start()
    hosted.send(0, 1)
    assert hosted.wait_outputs(2) == ["10 0 None", "20 1 5.0"]


def test_what_cannot_be_saved_fails_the_handler_and_leaves_no_half(host, caplog):
    source = OPERATOR.replace(
        "self.count += 1",
        'self.count += 1\n                if number == 2 and event["attempt"] == 1: self.last.append(self)',
    )
    hosted = host(source).start()
    hosted.send(*range(4))
    assert hosted.wait_outputs(4) == reference(4)
    hosted.finish()
    assert "FieldError: the field last cannot be saved" in caplog.text
    assert hosted.supervisor.restarts == 1


def test_a_restart_into_a_newer_class_migrates(host):
    hosted = host(
        """
        from dora_state import state

        class Operator:
            x: int = state(0)

            def on_event(self, event, send_output):
                self.x += 1
                send_output("out", b"%d" % self.x)
                return 0
        """
    ).start()
    hosted.send(0, 1)
    hosted.wait_outputs(2)
    hosted.wait_spare()  # whether one that is just importing has read the old file or the new, nobody knows
    hosted.operator.write_text(
        textwrap.dedent(
            """
            from dora_state import state

            class Operator:
                state_version = 2
                both: list = state([])

                def migrate_state(self, state, version):
                    state["both"] = [version, state.pop("x")]

                def on_event(self, event, send_output):
                    self.both.append(int(event["value"]))
                    send_output("out", repr(self.both).encode())
                    return 0
            """
        )
    )
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(2)
    assert hosted.wait_outputs(3) == ["1", "2", "[1, 2, 2]"]
    kill(hosted.wait_running(2)["worker_pid"])
    hosted.send(3)
    assert hosted.wait_outputs(4)[3] == "[1, 2, 2, 3]"
    hosted.finish()
    assert sorted(hosted.state()) == ["@", "@both"]


def test_validate_state_sees_the_fields_and_a_snapshot_brings_them_back(host):
    """Entries that came, went and changed after the snapshot are as they were then."""
    hosted = host(
        """
        from dora_state import state

        class Operator:
            count: int = state(0)
            cells: dict[int, list] = state({}, keyed=True)

            def validate_state(self):
                assert self.count != 4, "four is no count"

            def on_event(self, event, send_output):
                number = int(event["value"])
                self.count += 1
                self.cells.pop(number - 2, None)
                self.cells[number] = []
                for each in self.cells.values():
                    each.append(number)
                send_output("out", repr((self.count, dict(self.cells))).encode())
                return 0
        """,
        policy=RestartPolicy(restart_delay=0.0),
    ).start()
    for n in range(4):
        hosted.send(n)
        hosted.wait_outputs(n + 1)
        if n == 2:
            with Store(hosted.store_path) as store:
                assert snapshot.take(store) is not None
    assert hosted.texts[3] == "(4, {2: [2, 3], 3: [3]})"
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(7)
    after = "(4, {1: [1, 2, 7], 2: [2, 7], 7: [7]})"
    assert hosted.wait_outputs(5)[4] == after
    assert hosted.statuses[-1]["last_rollback"]["undone"] == 1
    hosted.send(8)
    hosted.wait_outputs(6)
    kill(hosted.wait_running(4)["worker_pid"])
    hosted.send(9)
    assert (
        hosted.wait_outputs(7)[6] == "(6, {1: [1, 2, 7, 8, 9], 2: [2, 7, 8, 9], 8: [8, 9], 9: [9]})"
    )
    hosted.finish()
    values, _ = typed_state.unpack(hosted.state())
    assert list(values["cells"]) == [1, 2, 8, 9]


def test_an_operator_with_fields_is_torn_down(host, tmp_path):
    """In __del__, as dora's operators are: nothing else may hold it."""
    hosted = host(
        f"""
        from dora_state import state

        class Operator:
            count: int = state(7)

            def on_event(self, event, send_output):
                return 0

            def __del__(self):
                with open({str(tmp_path / "torn-down")!r}, "w") as file:
                    file.write(str(self.count))
        """
    ).start()
    hosted.finish()
    assert (tmp_path / "torn-down").read_text() == "7"
