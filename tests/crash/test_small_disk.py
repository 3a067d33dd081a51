"""T11: a disk that is full, and one that is read-only, mounted for one process in a user namespace of its own.

I20: a put on a full disk raises StoreFull and changes nothing, nobody is killed by SIGBUS, deletes and compaction still
work and make room. I22: a read-only open of a read-only file system works and changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

_PREAMBLE = """
import sys
from dora_state import Store, errors
disk = sys.argv[1]

def fill_disk():
    with open(disk + "/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
"""
_UNSHARE = ["unshare", "--user", "--mount", "--map-root-user"]


def _in_own_mounts(tmp_path, script: str, options: str) -> None:
    """Runs Python code with a fresh tmpfs at `tmp_path / "disk"`; whatever it asserts must hold."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    code = textwrap.dedent(_PREAMBLE) + textwrap.dedent(script)
    command = [*_UNSHARE, "sh", "-c", mount, str(disk), sys.executable, "-c", code, str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _namespaces():
    try:
        probe = subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode != 0:
        pytest.skip("user namespaces are not allowed here")


@pytest.mark.parametrize("value_bytes", [100, 3_000, 60_000])
def test_i20_a_full_disk_refuses_puts_and_takes_deletes(tmp_path, value_bytes):
    script = f"""
    store = Store(disk + "/store")
    model = {{}}
    for i in range(1_000_000):
        try:
            store.put(f"k{{i}}", b"%d," % i * ({value_bytes} // 8))
        except errors.StoreFull as error:
            assert "intact" in str(error) or "free some" in str(error), error
            break
        model[f"k{{i}}"] = b"%d," % i * ({value_bytes} // 8)
    else:
        raise AssertionError("the disk was never full")
    assert len(model) >= 5
    assert dict(store.items()) == model
    for key in list(model)[: len(model) * 3 // 4]:
        store.delete(key)
        del model[key]
    assert dict(store.items()) == model
    store.compact()
    store.verify()
    for i in range(3):
        store.put("again", b"x" * {value_bytes})
    model["again"] = b"x" * {value_bytes}
    store.close()
    with Store(disk + "/store") as store:
        assert dict(store.items()) == model
    """
    _in_own_mounts(tmp_path, script, "size=1m")


@pytest.mark.parametrize("opens", [1, 2, 3])
def test_i20_a_store_is_opened_on_a_full_disk(tmp_path, opens):
    """By a process that comes later: it can delete, and overwrite as long as there is room in the segment."""
    script = f"""
    for i in range({opens}):
        with Store(disk + "/store") as store:
            store.update({{"a": b"1", "b": bytes(1000)}})
    fill_disk()
    with Store(disk + "/store") as store:
        store.delete("b")
        store.put("a", b"2")
        store.compact()
    with Store(disk + "/store") as store:
        assert dict(store) == {{"a": b"2"}}
    """
    _in_own_mounts(tmp_path, script, "size=1m")


def test_i20_what_has_expired_makes_room_on_a_full_disk(tmp_path):
    script = """
    import os, subprocess
    with Store(disk + "/store") as store:
        store.put("stays", b"1")
        try:
            for i in range(1_000_000):
                store.put(f"k{i}", bytes(3_000), ttl=50)
        except errors.StoreFull:
            pass
        assert len(store) > 100
        later = '''
    import sys
    from dora_state import Store
    with Store(sys.argv[1] + "/store") as store:
        assert dict(store) == {"stays": b"1"}
        for i in range(1000):
            store.put(f"k{i % 10}", bytes(3_000))
        store.verify()
        assert len(store) == 11
    '''
    # Closed: an idle process keeps what it has mapped, also when others have dropped it.
    import textwrap
    environment = {**os.environ, "DORA_STATE_CLOCK_SHIFT": "100 100"}
    command = [sys.executable, "-c", textwrap.dedent(later), disk]
    subprocess.run(command, env=environment, check=True)
    """
    _in_own_mounts(tmp_path, script, "size=1m")


def test_i20_a_store_is_not_made_on_a_full_disk(tmp_path):
    script = """
    fill_disk()
    try:
        Store(disk + "/store")
    except errors.StoreFull:
        pass
    else:
        raise AssertionError("it was")
    import os
    os.unlink(disk + "/filler")
    with Store(disk + "/store") as store:
        store.put("a", b"1")
    """
    _in_own_mounts(tmp_path, script, "size=256k")


def test_i22_a_read_only_file_system_can_be_read(tmp_path):
    script = """
    import subprocess
    with Store(disk + "/store") as store:
        store.put("a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with Store(disk + "/store", read_only=True) as store:
        assert store["a"] == b"1"
        try:
            store.put("a", b"2")
        except errors.ReadOnlyError:
            pass
        else:
            raise AssertionError("it was written")
    try:
        Store(disk + "/store")
    except errors.StoreIOError as error:
        assert "read_only" in str(error), error
    else:
        raise AssertionError("it was opened for writing")
    """
    _in_own_mounts(tmp_path, script, "size=4m")
