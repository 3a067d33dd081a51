"""The record of a lock file: the old one or the new one, whatever happens."""

from __future__ import annotations

import os

import pytest

from dora_state.lockfile import LockFile


@pytest.fixture
def lock(tmp_path):
    lock = LockFile(tmp_path / "a.lock")
    assert lock.acquire()
    yield lock
    lock.close()


def test_a_record_replaces_any_other(lock):
    for record in ({"n": 1}, {"names": ["x" * 100] * 100}, {}, {"n": "é"}):
        lock.write(record)
        assert lock.read() == record


def test_who_is_killed_while_writing_leaves_the_old_record(lock, monkeypatch):
    class Killed(BaseException):
        pass

    def pwrite(*arguments):
        raise Killed

    lock.write({"run": "old"})
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(Killed):
        lock.write({"run": "new"})
    assert lock.read() == {"run": "old"}


def test_a_lock_is_seen_from_outside(lock):
    other = LockFile(lock.path)
    assert other.is_held()
    lock.close()
    assert not other.is_held()
    assert other.acquire()
    other.close()
