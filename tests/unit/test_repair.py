"""dora_state.repair: what Python sees of it. tests/c/test_repair.c damages every part of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_state import Repaired, Store, repair
from dora_state.errors import CorruptionError, NotAStoreError, StoreInUse


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with Store(path) as store:
        for i in range(300):
            store.update({f"a-{i}": bytes([i % 256]) * 200, f"b-{i}": b"b" * i})
    return path


def damage(path: Path) -> None:
    """Overwrites some bytes in the middle of the first segment."""
    for derived in [path / "control", *path.glob("index.*")]:
        derived.unlink()
    with (path / "0000000000000000.log").open("r+b") as log:
        log.seek(20_000)
        log.write(b"\xff" * 1000)


def test_a_damaged_store_is_replaced_by_what_is_intact(path):
    damage(path)
    with pytest.raises(CorruptionError):
        Store(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    report = repair(path)
    assert isinstance(report, Repaired)
    assert report.damages == 1
    assert report.first_damage is not None
    assert 18_000 < report.first_damage <= 20_000
    assert 1000 <= report.dropped_bytes < 3000
    assert report.lost_blobs == 0
    assert report.damaged_path == f"{path}.damaged-1"
    assert {file.name: file.read_bytes() for file in Path(report.damaged_path).iterdir()} == before
    with Store(path) as store:
        kept = [i for i in range(300) if f"a-{i}" in store]
        assert 290 < len(kept) == report.commits < 300
        assert report.records == 2 * len(kept) == len(store)
        for i in kept:
            assert store[f"a-{i}"] == bytes([i % 256]) * 200
            assert store[f"b-{i}"] == b"b" * i
        assert report.sequence == 300 + 2**32
        assert store.put("next", b"") == report.sequence + 1
        assert store.verify() > 0


def test_a_healthy_store_comes_out_as_it_went_in(path):
    with Store(path, read_only=True) as store:
        before = {key: store.entry(key) for key in store}
    report = repair(str(path))
    assert report[:6] == (300, 600, 0, 0, 0, None)
    with Store(path) as store:
        assert {key: store.entry(key) for key in store} == before
        assert len(list(store.changes(after=0))) == 300


def test_an_open_store_is_refused(path):
    with Store(path), pytest.raises(StoreInUse, match="close the store"):
        repair(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["store"]


def test_what_is_no_store_is_refused(tmp_path):
    for wrong in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotAStoreError):
            repair(wrong)
    with pytest.raises(ValueError, match="NUL"):
        repair("a\0b")
