"""Keys, values, directories of every kind, in a Store and in kvs_*: what is refused says why, and nothing is lost."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import dora_state
from dora_state import Store, kvs, kvs_entry, kvs_keys, kvs_read, kvs_wait, kvs_write
from dora_state.errors import CorruptionError, OperatorError, TooLarge

TWINS = [unicodedata.normalize(form, "Über") for form in ("NFC", "NFD")]
KEYS = [
    "",
    "\0",
    "a\0b",
    "k" * 300,
    "🤖",
    "../../up",
    "/",
    ".",
    "..",
    " ",
    "\n",
    "con",
    *TWINS,
    "k" * 65535,
]


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    monkeypatch.delenv("DORA_NODE_CONFIG", raising=False)
    monkeypatch.delenv("DORA_STATE_SHARED", raising=False)
    monkeypatch.setenv("DORA_STATE_DIR", str(tmp_path / "state"))
    kvs._forget_after_fork()
    yield tmp_path / "state"
    if kvs._store is not None:
        kvs._store.close()
    kvs._forget_after_fork()


def digest(folder: Path) -> dict[str, str]:
    """What is in every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Keys


def test_every_text_is_a_key_of_its_own(shared, tmp_path):
    assert TWINS[0] != TWINS[1]
    wanted = {key: b"%d" % number for number, key in enumerate(KEYS)}
    for key, value in wanted.items():
        kvs_write(key, value)
    assert kvs_keys() == sorted(KEYS)
    assert {key: kvs_read(key) for key in KEYS} == wanted
    for key in KEYS:
        assert kvs_wait(key, timeout=0) == kvs_entry(key).sequence
        assert key in kvs_keys(key[:1])
    kvs._store.close()
    assert {path.name for path in tmp_path.iterdir()} == {"state"}, "a key left the store"
    for path in (shared / "shared").iterdir():
        if path.name == "control" or path.name.startswith("index."):
            path.unlink()  # as a reboot does
    with Store(shared / "shared") as store:
        assert dict(store) == wanted
        for key in KEYS:
            del store[key]
            del wanted[key]
            assert store.snapshot() == wanted


@pytest.mark.parametrize(
    ("key", "error", "says"),
    [
        ("k" * 65536, TooLarge, "65536 bytes; the limit is 65535"),
        ("ü" * 40000, TooLarge, "80000 bytes; the limit is 65535"),
        ("\ud800", ValueError, "lone surrogate"),
        (b"bytes", TypeError, "a key is a str, not bytes; use str"),
        (7, TypeError, "a key is a str, not int"),
        (None, TypeError, "a key is a str, not NoneType"),
        (["k"], TypeError, "a key is a str, not list"),
    ],
)
def test_what_is_no_key_is_refused_and_changes_nothing(key, error, says):
    before = kvs_write("there", b"1")
    with kvs.kvs_batch() as batch:
        batch.put("kept", b"1")
        with pytest.raises(
            TypeError if error is TooLarge else error, match="." if error is TooLarge else says
        ):
            batch.put(key, b"2") if error is not TooLarge else batch.put(b"", b"")
    for write in (
        lambda: kvs_write(key, b"2"),
        lambda: kvs_write(key, b"2", ttl=1),
        lambda: dora_state.kvs_compare_and_write(key, b"2", expected=0),
        lambda: dora_state.kvs_update(key, lambda value: b"2"),
    ):
        with pytest.raises(error, match=says):
            write()
    if error is not TooLarge:  # which is missing, like any other
        for read in (kvs_read, kvs_entry, kvs_wait, dora_state.kvs_delete):
            with pytest.raises(error, match=says):
                read(key)
    assert kvs_entry("there") == (b"1", before)
    assert kvs_keys() == ["kept", "there"]


# Values


@pytest.mark.parametrize("size", [0, 1, 7, 8, 4055, 4056, 70_000, 16 << 20, (16 << 20) + 1])
def test_a_value_of_any_size_comes_back(size):
    value = np.random.default_rng(size).bytes(size)
    kvs_write("value", value)
    assert kvs_read("value") == value
    kvs_write("expires", value, ttl=1000)
    assert kvs_read("expires") == value


def test_every_contiguous_buffer_is_a_value():
    array = np.arange(12, dtype="<i4").reshape(3, 4)
    for value in (
        array,
        bytearray(array.tobytes()),
        memoryview(array.tobytes()),
        array.view("u1"),
    ):
        kvs_write("value", value)
        assert kvs_read("value") == array.tobytes()


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("text", TypeError, r"not str; encode it first: value\.encode"),
        (None, TypeError, "not NoneType"),
        (7, TypeError, "not int"),
        ([b"1"], TypeError, "not list"),
        (np.arange(10)[::2], ValueError, "contiguous"),
    ],
)
def test_what_is_no_value_is_refused_and_changes_nothing(value, error, says):
    before = kvs_write("there", b"1")
    for write in (
        lambda: kvs_write("there", value),
        lambda: kvs_write("there", value, ttl=1),
        lambda: dora_state.kvs_compare_and_write("there", value, expected=before),
        lambda: kvs.kvs_batch().put("there", value),
    ):
        with pytest.raises(error, match=says):
            write()
    with pytest.raises(error):
        dora_state.kvs_update("there", lambda _: value)
    assert kvs_entry("there") == (b"1", before)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kvs_wait("k", after=-1),
        lambda: kvs_wait("k", after="1"),
        lambda: kvs_wait("k", timeout=-1),
        lambda: kvs_wait("k", timeout=float("nan")),
        lambda: dora_state.kvs_compare_and_write("k", b"", expected=-1),
        lambda: dora_state.kvs_compare_and_write("k", b"", expected="1"),
        lambda: dora_state.kvs_compare_and_write("k", b"", expected=None),  # type: ignore[arg-type]
        lambda: dora_state.kvs_update("k", None),
    ],
)
def test_arguments_out_of_range_are_plain_errors(call):
    kvs_write("there", b"1")
    with pytest.raises((TypeError, ValueError)):
        call()
    assert kvs_keys() == ["there"]


# Directories


def test_a_corrupt_store_is_told_and_stays_as_it_is(shared):
    kvs_write("a", b"1" * 1000)
    kvs_write("b", b"2" * 1000)
    kvs._store.close()
    kvs._forget_after_fork()
    (log,) = (shared / "shared").glob("*.log")
    content = bytearray(log.read_bytes())
    content[500] ^= 1
    log.write_bytes(content)
    (shared / "shared" / "control").unlink()
    before = digest(shared)
    for call in (lambda: kvs_read("b"), lambda: kvs_write("c", b""), kvs_keys):
        with pytest.raises(
            CorruptionError, match=r"damaged at offset .*nothing was changed.*repair"
        ):
            call()
    assert digest(shared) == before
    dora_state.repair(shared / "shared")
    assert kvs_keys() == ["b"]


def test_a_directory_of_something_else_is_refused_and_stays_as_it_is(shared):
    shared.mkdir()
    (shared / "thesis.tex").write_text("all of it")
    with pytest.raises(
        OperatorError, match=r"not a state directory.*thesis\.tex.*choose another place"
    ):
        kvs_write("a", b"1")
    assert digest(shared).keys() == {"thesis.tex"}


def test_a_file_in_its_place_is_refused(shared):
    shared.write_text("mine")
    with pytest.raises(OperatorError, match="choose another place"):
        kvs_read("a")
    assert shared.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("part", [".", "shared"])
def test_a_directory_of_another_user_is_refused_and_stays_as_it_is(shared, part):
    kvs_write("a", b"1")
    kvs._store.close()
    kvs._forget_after_fork()
    os.chown(shared / part, 12345, 12345)
    before = digest(shared)
    with pytest.raises(OperatorError, match="belongs to another user"):
        kvs_write("a", b"2")
    assert digest(shared) == before
    os.chown(shared / part, 0, 0)
    assert kvs_read("a") == b"1"


def test_an_empty_name_of_a_directory_is_none(monkeypatch):
    monkeypatch.setenv("DORA_STATE_DIR", "")
    with pytest.raises(OperatorError, match="set DORA_STATE_DIR to a state directory"):
        kvs_read("a")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (1.5, TypeError),
        ("5", TypeError),
        (None, TypeError),
        (0, ValueError),
        (-1, ValueError),
        (2**31, ValueError),
    ],
)
def test_group_ms_is_a_whole_number_of_milliseconds(tmp_path, value, error):
    with pytest.raises(error, match="group_ms"):
        Store(tmp_path / "store", group_ms=value)
    assert not (tmp_path / "store").exists()
    Store(tmp_path / "store", group_ms=2**31 - 1).close()
