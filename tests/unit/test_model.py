"""The same random operations on a Store, and on a dict with a list of its commits (I1, I18, I25).

Closing, reopening, compaction, a faked reboot and the SIGKILL of a writing process are operations too, so a failure
comes with the shortest sequence of them that Hypothesis finds. DORA_STATE_MODEL_EXAMPLES=2000 makes it a long run.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dora_state import Store
from dora_state.errors import Compacted, Conflict, ReadOnlyError

MARKER = "marker"
KEYS = [
    "",
    "\0",
    "a",
    "a\0b",
    "a\0",
    "../a",
    "\u00e9",
    "e\u0301",
    "\U0001f916",
    "k" * 300,
    "k" * 299 + "\0",
]
# Around the limits of small values (4096 bytes with header and key), of a page, of the smallest segment, and beyond.
SIZES = [0, 1, 7, 8, 9, 100, 1000, 4000, 4047, 4048, 4055, 4056, 4057, 4095, 4096, 4097]
LARGE = [65_000, 65_344, 65_345, 65_535, 65_536, 131_072, 300_000]


def make_value(size: int, seed: int) -> bytes:
    return (struct.pack("<I", seed) * (size // 4 + 1))[:size]


keys = st.sampled_from(KEYS) | st.integers(0, 30).map("key {}".format)
sizes = st.sampled_from(SIZES) | st.sampled_from(SIZES + LARGE)
values = st.builds(make_value, sizes, st.integers(0, 2**32 - 1))
small_values = st.builds(make_value, st.sampled_from(SIZES), st.integers(0, 2**32 - 1))
# A list, not a dict: a key may be named twice, and the last change counts.
batches = st.lists(st.tuples(keys, st.none() | small_values), max_size=8)

Changes = dict[str, bytes | None]


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="dora-state-model-"))
        self.path = self.directory / "store"
        self.data: dict[str, bytes] = {}
        self.sequences: dict[str, int] = {}
        self.log: list[tuple[int, Changes]] = []
        self.compacted = -1  # the highest `after` that was answered with Compacted
        self.views: list[tuple[memoryview, bytes]] = []
        self.store = Store(self.path)
        self.others: list[Store] = []

    def teardown(self) -> None:
        try:
            self.everything_is_as_it_should_be()
            self.store.verify()
        finally:
            for store in [self.store, *self.others]:
                store.close()
            self.views_have_not_changed()
            self.views.clear()
            shutil.rmtree(self.directory)

    # What must have happened

    def committed(self, sequence: int, changes: Changes) -> None:
        """Notes a commit; deletes of what is missing are no part of it, and without a change there is none."""
        real = {k: v for k, v in changes.items() if v is not None or k in self.data}
        last = self.log[-1][0] if self.log else 0
        if not real:
            assert sequence == last or not self.log
            return
        assert sequence > last
        self.log.append((sequence, real))
        for key, value in real.items():
            if value is None:
                del self.data[key], self.sequences[key]
            else:
                self.data[key] = value
                self.sequences[key] = sequence

    def everything_is_as_it_should_be(self) -> None:
        for store in [self.store, *self.others]:
            assert store.snapshot() == self.data
            assert len(store) == len(self.data)

    def views_have_not_changed(self) -> None:
        for view, wanted in self.views:
            assert view == wanted

    @invariant()
    def the_number_of_keys_is_right(self) -> None:
        assert len(self.store) == len(self.data)

    # Writing

    @rule(key=keys, value=values, item=st.booleans())
    def put(self, key: str, value: bytes, item: bool) -> None:
        if item:
            self.store[key] = value
            self.committed(self.store.entry(key).sequence, {key: value})
        else:
            self.committed(self.store.put(key, value), {key: value})

    @rule(key=keys)
    def delete(self, key: str) -> None:
        if key in self.data:
            self.committed(self.store.delete(key), {key: None})
        else:
            with pytest.raises(KeyError):
                self.store.delete(key)

    @rule(key=keys)
    def pop(self, key: str) -> None:
        wanted = self.data.get(key, b"none")
        assert self.store.pop(key, b"none") == wanted
        if key in self.data:
            self.committed(self.store.settle(), {key: None})

    @rule(changes=batches, fails=st.booleans())
    def batch(self, changes: list[tuple[str, bytes | None]], fails: bool) -> None:
        try:
            with self.store.batch() as batch:
                for key, value in changes:
                    if value is None:
                        batch.delete(key)
                    else:
                        batch.put(key, value)
                if fails:
                    raise InterruptedError
        except InterruptedError:
            return
        self.committed(self.store.settle(), dict(changes))

    @rule(changes=st.dictionaries(keys, small_values, max_size=8))
    def update(self, changes: dict[str, bytes]) -> None:
        self.committed(self.store.update(changes), dict(changes))

    @rule(key=keys, value=values, wrong=st.sampled_from([0, 0, 0, 1, 2**40]))
    def compare_and_put(self, key: str, value: bytes, wrong: int) -> None:
        real = self.sequences.get(key, 0)
        if wrong == 0:
            self.committed(self.store.compare_and_put(key, value, expected=real), {key: value})
            return
        with pytest.raises(Conflict) as conflict:
            self.store.compare_and_put(key, value, expected=real + wrong)
        assert conflict.value.sequence == real

    @rule(key=keys)
    def modify(self, key: str) -> None:
        wanted = self.data.get(key, b"")[:5000] + b"+"
        function: Callable[[bytes | None], bytes] = lambda old: (old or b"")[:5000] + b"+"  # noqa: E731
        self.committed(self.store.modify(key, function), {key: wanted})

    @rule()
    def clear(self) -> None:
        # No precondition: whether a killed writer's last batch is there is not Hypothesis's to know.
        if len(self.data) > 5:
            self.store.clear()
            self.committed(self.store.settle(), dict.fromkeys(self.data))

    # Reading

    @rule(key=keys)
    def get(self, key: str) -> None:
        for store in [self.store, *self.others]:
            assert store.get(key) == self.data.get(key)
            assert (key in store) == (key in self.data)
            if key in self.data:
                assert store.entry(key) == (self.data[key], self.sequences[key])
            else:
                with pytest.raises(KeyError):
                    store[key]

    @rule(key=keys)
    def view(self, key: str) -> None:
        """It must never change, whatever becomes of the key and of the handle."""
        if key in self.data:
            view = self.store.view(key)
            assert view == self.data[key]
            self.views.append((view, self.data[key]))
            del self.views[:-20]

    @rule(wanted=st.lists(keys, max_size=8))
    def get_many(self, wanted: list[str]) -> None:
        assert self.store.get_many(wanted) == {k: self.data[k] for k in wanted if k in self.data}

    @rule()
    def compare(self) -> None:
        self.everything_is_as_it_should_be()
        self.views_have_not_changed()
        assert sorted(self.store) == sorted(self.data)

    @rule(back=st.integers(0, 40), extra=st.sampled_from([0, 0, 1]))
    def changes(self, back: int, extra: int) -> None:
        sequences = [0] + [sequence for sequence, _ in self.log]
        after = max(0, sequences[-1 - min(back, len(self.log))] - extra)
        wanted = [commit for commit in self.log if commit[0] > after]
        try:
            assert list(self.store.changes(after=after)) == wanted
            assert after > self.compacted, "what was compacted away is back"
        except Compacted:
            assert wanted, "there is nothing after this sequence that could be gone"
            self.compacted = max(self.compacted, after)

    @rule()
    def read_only(self) -> None:
        with Store(self.path, read_only=True) as store:
            assert store.snapshot() == self.data
            with pytest.raises(ReadOnlyError):
                store.put("a", b"1")

    # The life of a store

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule()
    @precondition(lambda self: len(self.others) < 2)
    def open_another(self) -> None:
        self.others.append(Store(self.path))

    @rule()
    @precondition(lambda self: self.others)
    def write_with_another_from_now_on(self) -> None:
        self.others.append(self.store)
        self.store = self.others.pop(0)

    @rule()
    @precondition(lambda self: self.others)
    def close_another(self) -> None:
        self.others.pop().close()

    @rule(reboot=st.booleans(), durability=st.sampled_from(["process", "group", "commit"]))
    def reopen(self, reboot: bool, durability: str) -> None:
        for store in [self.store, *self.others]:
            store.close()
        self.others.clear()
        if reboot:
            for derived in [self.path / "control", *self.path.glob("index.*")]:
                derived.unlink()
        self.store = Store(self.path, durability=durability)
        self.everything_is_as_it_should_be()

    @rule(work=st.lists(batches, min_size=1, max_size=6), acknowledged=st.integers(0, 6))
    def kill_a_writer(self, work: list[list[tuple[str, bytes | None]]], acknowledged: int) -> None:
        """It commits one batch after the other, and dies when that many are known to be there."""
        acknowledged = min(acknowledged, len(work))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                with Store(self.path) as store:
                    for number, changes in enumerate(work):
                        batch = store._batch()
                        for key, value in changes:
                            if value is None:
                                batch.delete(key)
                            else:
                                batch.put(key, value)
                        batch.put(MARKER, struct.pack("<Q", number))
                        os.write(writing, struct.pack("<Q", batch.commit()))
                    signal.pause()
            finally:
                os._exit(1)
        os.close(writing)
        with open(reading, "rb") as pipe:
            sequences = [struct.unpack("<Q", pipe.read(8))[0] for _ in range(acknowledged)]
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            rest = pipe.read()
        sequences += [told for (told,) in struct.iter_unpack("<Q", rest[: len(rest) // 8 * 8])]
        before = self.sequences.get(MARKER, 0)
        self.store.settle()
        now = self.store.entry(MARKER) if MARKER in self.store else None
        done = struct.unpack("<Q", now.value)[0] + 1 if now and now.sequence > before else 0
        assert len(sequences) <= done <= len(sequences) + 1
        if now and done > len(sequences):
            sequences.append(now.sequence)
        for number in range(done):
            marker = struct.pack("<Q", number)
            self.committed(sequences[number], dict(work[number]) | {MARKER: marker})
        self.everything_is_as_it_should_be()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=int(os.environ.get("DORA_STATE_MODEL_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
