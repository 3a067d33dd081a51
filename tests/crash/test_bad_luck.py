"""Bad input and bad luck, as Python sees it: a typed error, what was there before is intact, and the process lives.

The engine's own tests damage every byte and fail every system call; here it is asked whether each kind arrives as the
exception that the documentation names. A full disk, a read-only file system: test_small_disk.py. A file that is cut
while it is in use: unit/test_sigbus.py. What `repair` drops and keeps: unit/test_repair.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from dora_state import Store
from dora_state.errors import CorruptionError, FormatError, NotAStoreError, StateError

CONTENT = {f"k{i}": b"%d " % i * 50 for i in range(900)}  # several segments
LOG = "0000000000000000.log"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with Store(path) as store:
        for key, value in CONTENT.items():
            store.put(key, value)
        store.put("blob", b"b" * (17 << 20))
    return path


def without_derived(path: Path) -> None:
    for derived in [path / "control", *path.glob("index.*")]:
        derived.unlink(missing_ok=True)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def overwrite(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


def flip_in_the_log(path: Path) -> None:
    overwrite(path / LOG, 5000, b"\xff" * 9)


def cut_the_log(path: Path) -> None:
    os.truncate(path / LOG, 3000)


def empty_the_log(path: Path) -> None:
    os.truncate(path / LOG, 0)


def lose_the_log(path: Path) -> None:
    (path / LOG).unlink()


def lose_the_blob(path: Path) -> None:
    next(path.glob("*.blob")).unlink()


def cut_the_blob(path: Path) -> None:
    os.truncate(next(path.glob("*.blob")), 1000)


def of_the_future(path: Path) -> None:
    overwrite(path / LOG, 8, (2).to_bytes(4, "little"))


def with_unknown_features(path: Path) -> None:
    overwrite(path / LOG, 20, b"\x80")


def something_else(path: Path) -> None:
    overwrite(path / LOG, 0, b"SQLite format 3\0")


DAMAGES: list[tuple[Callable[[Path], None], type[StateError]]] = [
    (flip_in_the_log, CorruptionError),
    (cut_the_log, CorruptionError),
    (empty_the_log, CorruptionError),
    (lose_the_log, CorruptionError),
    (lose_the_blob, CorruptionError),
    (cut_the_blob, CorruptionError),
    (of_the_future, FormatError),
    (with_unknown_features, FormatError),
    (something_else, (CorruptionError, NotAStoreError)),  # type: ignore[list-item]
]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("damage", "error"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES]
)
def test_damage_is_told_and_nothing_is_changed(path, damage, error, read_only):
    whole = path.with_name("whole")
    shutil.copytree(path, whole)
    without_derived(path)
    damage(path)
    before = files_of(path)
    with pytest.raises(error, match=str(path)):  # noqa: SIM117
        with Store(path, read_only=read_only) as store:  # a lost blob shows when it is read
            assert {key: store[key] for key in CONTENT} == CONTENT
            store["blob"]
    if error is not CorruptionError or "blob" not in damage.__name__:
        assert files_of(path) == before
    with Store(whole) as store:
        assert dict(store.items()).keys() == CONTENT.keys() | {"blob"}


@pytest.mark.parametrize("name", ["control", "index", "floor"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100_000])
def test_what_is_derived_may_be_anything(path, name, content):
    """The control page, the index and the floor can be made anew: nothing depends on them alone."""
    for file in path.glob(f"{name}*"):
        file.write_bytes(content)
    with Store(path) as store:
        assert {key: store[key] for key in CONTENT} == CONTENT
        store.put("more", b"1")
        assert store.verify() > 0


def test_an_empty_directory_becomes_a_store_only_when_asked(tmp_path):
    with pytest.raises(NotAStoreError):
        Store(tmp_path, create=False)
    assert not list(tmp_path.iterdir())
    with Store(tmp_path) as store:
        assert len(store) == 0


def test_somebody_elses_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(NotAStoreError):
        Store(tmp_path)
    assert files_of(tmp_path) == {"thesis.tex": b"mine"}


def test_the_end_of_a_process_removes_nothing(path):
    """Not even when multiprocessing's resource tracker cleans up behind it, as it does with shared memory."""
    with Store(path) as store:
        in_its_own_process(
            path,
            """
            import multiprocessing, multiprocessing.shared_memory
            memory = multiprocessing.shared_memory.SharedMemory(create=True, size=64)
            store = Store(path)
            store.put("from", b"another process")
            os._exit(0)  # neither the store nor the memory is closed
            """,
        )
        assert store["from"] == b"another process"
        assert {key: store[key] for key in CONTENT} == CONTENT
        store.put("and", b"it goes on")
    with Store(path) as store:
        assert store["and"] == b"it goes on"


# ---- limits of a process, in one of its own ----------------------------------------------------


def in_its_own_process(path: Path, script: str) -> None:
    code = "import errno, os, resource, sys\nfrom dora_state import Store, errors\npath = sys.argv[1]\n"
    code += textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_i21_out_of_descriptors(path):
    in_its_own_process(
        path,
        """
        store = Store(path)
        assert len(dict(store.items())) == 901  # all is mapped
        count = len(os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        failures = stored = 0
        for i in range(3000):  # sooner or later that takes a new segment
            try:
                store.put(f"new{i}", b"x" * 1000)
                stored += 1
            except errors.StateError as error:
                assert isinstance(error, OSError) and error.errno == errno.EMFILE, repr(error)
                assert "ulimit" in str(error)
                failures += 1
                break
        assert failures
        try:
            Store(path + "-other")
            raise AssertionError("opened without a descriptor")
        except errors.StateError as error:
            assert error.errno == errno.EMFILE
        assert store["k7"] == b"7 " * 50  # what is mapped is read
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == count
        store.put("new", b"again")
        assert sum(key.startswith("new") for key in store) == stored + 1
        store.verify()
        store.close()
        """,
    )
    with Store(path) as store:
        assert {key: store[key] for key in CONTENT} == CONTENT


def test_i21_out_of_memory(path):
    in_its_own_process(
        path,
        """
        store = Store(path)
        assert len(dict(store.items())) == 901  # all is mapped
        value = b"v" * (40 << 20)
        before = store.stats()["sequence"]
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), hard))
        for attempt in range(3):
            try:
                store.put("big", value)  # a file of its own, that cannot be mapped
                raise AssertionError("there was memory")
            except (errors.StateError, MemoryError) as error:
                assert isinstance(error, MemoryError) or error.errno == errno.ENOMEM, repr(error)
        assert store["k7"] == b"7 " * 50
        assert "big" not in store
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert store.stats()["sequence"] == before
        store.put("big", value)
        assert store["big"] == value
        store.verify()
        store.close()
        """,
    )
    assert len(list(path.glob("*.blob"))) == 2  # none is left of the attempts


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_i22_no_permission(path, tmp_path):
    """A store of another user: the open says whose it is, and changes nothing."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    before = files_of(path)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            try:
                Store(path)
            except StateError as error:
                code = (
                    0
                    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)
                    else 2
                )
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert files_of(path) == before
