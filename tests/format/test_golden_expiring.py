"""I24: stores with keys that expire, as engines of every format version wrote them, read at dates of our choice.

What is in such a store depends on the date, so each engine runs in a process of its own, whose wall clock is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import golden
import pytest
import reader

ARCHIVES = sorted(golden.FOLDER.glob("version-*-expiring.tar.xz"))
MINUTE_S = 60

READ = """
with Store(path, read_only=True) as store:
    seen = golden.content(store)
    assert store.stats()["dropped_bytes"] == 0
"""
GO_ON = """
with Store(path) as store:
    store.verify()
    store.put("new", b"for a day", ttl=86400)
    store.compact()
with Store(path) as store:
    assert store["new"] == b"for a day"
    del store["new"]
    store.verify()
    seen = golden.content(store)
"""


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def golden_store(request, tmp_path: Path) -> GoldenStore:
    path = tmp_path / "store"
    path.mkdir(mode=0o700)
    with tarfile.open(request.param) as archive:
        archive.extractall(path, filter="data")
    return GoldenStore(path)


class GoldenStore:
    def __init__(self, path: Path) -> None:
        expected = path / "content.json"
        self.path = path
        self.expected = json.loads(expected.read_text())
        expected.unlink()
        self.records = list(reader.records_of(reader.read_log(path).segments))
        last = max((r.expiry for r in self.records if r.expiry), key=lambda e: e.written)
        self.written_s = last.written // 10**9 + last.wall_ahead_s + 1

    def expiring(self) -> set[tuple[int, str]]:
        """The keys whose newest record expires."""
        newest = {(r.keyspace, r.key.decode()): r.expiry is not None for r in self.records}
        return {key for key, expires in newest.items() if expires}

    def lasting(self) -> list[dict[str, list]]:
        """What is left when all that expires has."""
        gone = self.expiring()
        return [
            {key: value for key, value in keys.items() if (space, key) not in gone}
            for space, keys in enumerate(self.expected)
        ]

    def run(self, steps: str, after_s: int) -> list[dict[str, list]]:
        """What the engine sees, so long after the store was written."""
        shift = self.written_s + after_s - int(time.time())
        script = "import json, sys, golden\nfrom dora_state import Store\npath = sys.argv[1]\n"
        done = subprocess.run(
            [sys.executable, "-c", script + steps + "print(json.dumps(seen))", str(self.path)],
            cwd=golden.FOLDER.parent,
            env={**os.environ, "DORA_STATE_CLOCK_SHIFT": f"0 {shift}"},
            check=True,
            capture_output=True,
        )
        return json.loads(done.stdout)

    def second_reader(self, after_s: int) -> list[dict[str, int]]:
        """The sequences of the keys that it sees."""
        state = reader.read_log(self.path, (self.written_s + after_s) * 10**9).state
        return [{k.decode(): entry.sequence for k, entry in keys.items()} for keys in state]


def sequences(content: list[dict[str, list]]) -> list[dict[str, int]]:
    return [{key: value[0] for key, value in keys.items()} for keys in content]


def values(content: list[dict[str, list]]) -> list[dict[str, list]]:
    return [{key: value[1:] for key, value in keys.items()} for keys in content]


def test_i24_it_holds_all_that_only_expiring_keys_need(golden_store: GoldenStore):
    expiring, present = golden_store.expiring(), golden_store.expected
    assert "gone" not in present[0]
    assert (0, "gone") in expiring
    assert {"large", "late", "lease/0", "short/2"} <= {key for _, key in expiring} & set(present[0])
    assert {"before", "short/4", "lease/4"} <= set(golden_store.lasting()[0])
    assert "short/6" not in present[0]
    kinds = {(r.op, r.expiry is not None) for r in golden_store.records}
    assert {(reader.PUT, True), (reader.BLOB, True), (reader.PUT, False)} <= kinds


def test_i24_it_is_read_without_a_change(golden_store: GoldenStore):
    before = {file.name: file.read_bytes() for file in golden_store.path.iterdir()}
    assert golden_store.run(READ, MINUTE_S) == golden_store.expected
    assert golden_store.run(READ, 11 * golden.YEAR_S) == golden_store.lasting()
    assert {file.name: file.read_bytes() for file in golden_store.path.iterdir()} == before


def test_i24_the_second_reader_agrees(golden_store: GoldenStore):
    assert golden_store.second_reader(MINUTE_S) == sequences(golden_store.expected)
    assert golden_store.second_reader(11 * golden.YEAR_S) == sequences(golden_store.lasting())


def test_i24_it_goes_on(golden_store: GoldenStore):
    assert values(golden_store.run(GO_ON, MINUTE_S)) == values(golden_store.expected)


def test_i24_it_goes_on_when_all_has_expired(golden_store: GoldenStore):
    assert values(golden_store.run(GO_ON, 11 * golden.YEAR_S)) == values(golden_store.lasting())
    assert not list(golden_store.path.glob("*.blob"))
