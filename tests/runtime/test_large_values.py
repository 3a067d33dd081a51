"""Large values lie in memory that host and workers share: copied once, unchanged for who keeps them, given back."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from hosting import kill

from dora_state.runtime import slots

pa = pytest.importorskip("pyarrow")
np = pytest.importorskip("numpy")

COUNT = 20_000  # int64 in a large array: 160 kB


def array(number: int, count: int = COUNT) -> pa.Array:
    return pa.array(np.full(count, number, dtype=np.int64))


def submit(hosted, value: object, id: str = "in") -> None:
    hosted.supervisor.submit(
        {"kind": "dora", "type": "INPUT", "id": id, "value": value, "metadata": {}}
    )


def feed(hosted, numbers, ahead: int = 5) -> None:
    """Submit arrays, some ahead of the operator: the input's cap on bytes must not drop any."""
    for number in numbers:
        submit(hosted, array(number))
        hosted.wait(lambda n=number: len(hosted.outputs) > n - ahead)


# Keeps every tenth array for ever, in every form that shares its memory, and looks at all of them in each event.
KEEPS = """
    import os
    import numpy as np

    class Operator:
        def __init__(self):
            self.kept = {}

        def on_event(self, event, send_output):
            value = event["value"]
            number = value[0].as_py()
            if number % 10 == 0:
                self.kept[number] = [value, value.slice(7), value.to_numpy(), np.asarray(value)[3:]][number // 10 % 4]
            for name, kept in self.kept.items():
                seen = np.unique(np.asarray(kept))
                assert seen.tolist() == [name], f"a kept {name} has become {seen}"
            send_output("kept", b"%d %d %d" % (number, len(self.kept), os.getpid()))
            return 0
"""


def test_what_an_operator_keeps_stays_unchanged_for_ever(host):
    hosted = host(KEEPS).start()
    feed(hosted, range(300))
    texts = hosted.wait_outputs(300)
    assert [text.split()[:2] for text in texts] == [[str(n), str(n // 10 + 1)] for n in range(300)]
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == 0, "it failed, and was restarted"


def test_kills_change_nothing_of_what_is_kept_and_lose_no_slot(host):
    hosted = host(KEEPS, kill="event@25,after-commit@50,before-commit@77,after-output@131").start()
    for number in range(160):
        feed(hosted, [number])
        if number % 40 == 39:
            kill(int(hosted.texts[-1].split()[2]))
    texts = hosted.wait_outputs(160)
    assert [int(text.split()[0]) for text in texts] == list(range(160))
    hosted.finish()
    assert hosted.supervisor.restarts >= 6
    assert not any("has become" in str(status["last_crash"]) for status in hosted.statuses)


def test_slots_that_are_not_kept_change_under_the_operator(host, monkeypatch):
    """The check of the check: with a host that forgets what it has lent, the tests above fail."""
    monkeypatch.setattr(slots.Sharing, "lend", lambda self, slot: None)
    hosted = host(KEEPS).start()
    submit(hosted, array(0))
    hosted.wait_outputs(1)
    submit(hosted, array(1))
    hosted.wait(lambda: "a kept 0 has become" in str(hosted.statuses[-1]["last_crash"]))


def test_a_full_arena_is_no_end(host, monkeypatch):
    """Kept arrays fill it; what comes then gets an arena of its own."""
    monkeypatch.setattr(slots, "ARENA_BYTES", 1 << 20)  # six arrays
    hosted = host(KEEPS.replace("number % 10", "number % 2").replace("number // 10", "number // 2"))
    hosted.start()
    files = len(os.listdir("/proc/self/fd"))
    feed(hosted, range(100))
    hosted.wait_outputs(100)
    assert len(os.listdir("/proc/self/fd")) < files + 10, (
        "what the worker keeps costs the host descriptors"
    )
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == 0


def test_without_memory_for_an_arena_values_go_through_the_socket(host, monkeypatch):
    hosted = host(KEEPS).start()
    monkeypatch.setattr(slots.Arena, "make", lambda self, size: None)
    monkeypatch.setattr(slots, "ArenaFile", lambda size: os.open("/nowhere", 0))
    feed(hosted, range(30))
    hosted.wait_outputs(30)
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == 0


def in_shared_memory(address: int) -> bool:
    """Whether an address of this process lies in an arena."""
    with open("/proc/self/maps") as file:
        for line in file:
            low, high = (int(each, 16) for each in line.split()[0].split("-"))
            if low <= address < high:
                return "memfd:dora-state" in line
    return False


def test_both_sides_use_a_value_where_it_was_copied_to(host):
    """One copy each way: neither the operator's array nor the one for dora is another."""
    hosted = host(
        """
        import numpy as np

        def in_shared_memory(address):
            for line in open("/proc/self/maps"):
                low, high = (int(each, 16) for each in line.split()[0].split("-"))
                if low <= address < high:
                    return "memfd:dora-state" in line

        class Operator:
            def on_event(self, event, send_output):
                value = event["value"]
                assert in_shared_memory(value.buffers()[1].address)
                assert not np.asarray(value).flags.writeable
                send_output("back", value)
                return 0
        """
    ).start()
    submit(hosted, array(5))
    hosted.wait(lambda: hosted.outputs)
    assert hosted.supervisor.restarts == 0
    value = hosted.outputs[0].value
    assert value.equals(array(5))
    assert in_shared_memory(value.buffers()[1].address)


def test_outputs_stay_as_they_were_sent_also_after_the_death_of_who_sent_them(host):
    hosted = host(
        """
        import numpy as np, pyarrow as pa

        class Operator:
            def on_event(self, event, send_output):
                number = event["value"][0].as_py()
                for n in (number, number + 1000):
                    send_output("out", pa.array(np.full(20_000, n, dtype=np.int64)))
                return 0
        """,
        kill=",".join(
            f"{point}@{n}"
            for n, point in enumerate(["after-commit", "after-ack", "after-output"] * 3, start=2)
        ),
    ).start()
    kept = []
    for number in range(12):
        submit(hosted, array(number, 10))
        hosted.wait(lambda n=number: len(hosted.outputs) > 2 * n + 1)
        kept.append(hosted.outputs[-1].value)
        hosted.outputs[-2:] = [None, None]  # the first is dropped, as when dora has taken it
    hosted.finish()
    gc.collect()
    for number, value in enumerate(kept):
        assert set(value.to_pylist()) == {1000 + number}


def test_slots_come_back_from_both_sides(host):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("back", event["value"])
                return 0
        """
    ).start()
    for number in range(30):
        submit(hosted, array(number))
        hosted.wait(lambda n=number: len(hosted.outputs) > n)
        assert hosted.outputs[number].value[0].as_py() == number
        hosted.outputs[number] = None
    submit(hosted, pa.array([1]))  # tells of the last ones
    hosted.wait(lambda: len(hosted.outputs) == 31)
    worker = hosted.machine.succession.current
    assert worker.channel.sharing._lent == {}
    arena = hosted.supervisor._memory._arena
    whole = arena.make(slots.ARENA_BYTES)
    assert whole is not None, f"some of it is not free: {arena._free}"
    assert outputs_in_use(worker) <= 3 * 160_000, "the worker was not told what is free"


def outputs_in_use(worker) -> int:
    """Bytes of memory that the outputs of a worker take."""
    return os.stat(worker.outputs.path).st_blocks * 512


def test_a_dead_worker_gives_back_what_it_kept(host):
    hosted = host(KEEPS).start()
    arena = hosted.supervisor._memory._arena
    for round in range(3):
        feed(hosted, range(11 * round, 11 * round + 11))
        hosted.wait_outputs(11 * round + 11)
        kill(int(hosted.texts[-1].split()[2]))
        hosted.wait_running(round + 2)
    submit(hosted, array(33))
    hosted.wait_outputs(34)
    hosted.wait(lambda: hosted.supervisor.restarts == 3)
    assert arena.make(slots.ARENA_BYTES - 3 * 163_840) is not None, "more than one is in use"
    hosted.finish()
    assert arena.make(slots.ARENA_BYTES) is not None


@pytest.mark.parametrize(
    "value",
    [
        pa.array([[n, n + 1] for n in range(20_000)]),
        pa.array([f"text {n}" if n % 7 else None for n in range(20_000)]),
        pa.array([n % 3 == 0 for n in range(1_000_000)]).slice(3),
        pa.array([{"x": n, "y": str(n)} for n in range(20_000)]),
        pa.array(["a", "b"] * 50_000).dictionary_encode(),
        pa.array(list(range(100_000))).slice(11, 60_000),
        os.urandom(300_000),
    ],
    ids=["lists", "texts", "bits", "structs", "dictionary", "slice", "bytes"],
)
def test_large_values_of_every_kind_pass_both_ways(host, value):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("back", event["value"])
                return 0
        """,
        kill="after-output@1",
    ).start()
    submit(hosted, value)
    submit(hosted, value)
    hosted.wait(lambda: len(hosted.outputs) == 2)
    for output in hosted.outputs:
        assert output.value == value


def test_what_a_child_of_the_operator_inherits_stays_as_it_is(host):
    """The worker goes on and drops the array; its child still looks at it."""
    hosted = host(
        """
        import os
        import numpy as np

        class Operator:
            def on_event(self, event, send_output):
                value = event["value"]
                if value[0].as_py() == 0:
                    self.go, wake = os.pipe()
                    said, self.say = os.pipe()
                    self.wake, self.said = wake, said
                    if os.fork() == 0:
                        os.read(self.go, 1)
                        os.write(self.say, repr(np.unique(value).tolist()).encode())
                        os._exit(0)
                if value[0].as_py() == 9:
                    os.write(self.wake, b"x")
                    send_output("child", os.read(self.said, 1000))
                send_output("done", b"")
                return 0
        """
    ).start()
    feed(hosted, range(10))
    hosted.wait_outputs(11)
    assert "[0]" in hosted.texts


def test_arrays_that_come_while_others_are_freed_in_other_threads(host):
    """The arena is used by the thread that takes in events and the one that frees them."""
    arena = slots.Arena(slots.ArenaFile(8 << 20).mapping)
    errors: list[str] = []

    def work(mark: int) -> None:
        kept = []
        for n in range(2000):
            slot = arena.make(4096 * (1 + n % 5))
            if slot is not None:
                (view,) = slot.fill([bytes([mark]) * 4000])
                kept.append(view)
            if len(kept) > 50:
                old = kept.pop(n % 50)
                if bytes(old) != bytes([mark]) * 4000:
                    errors.append(f"of {mark} became {old[0]}")

    threads = [threading.Thread(target=work, args=[mark]) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert arena.make(8 << 20) is not None, "all of it is one again"
