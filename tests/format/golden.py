"""Golden files: stores as an engine of each format version wrote them. Every later engine must read them (I24).

    python tests/format/golden.py      makes those files of the installed engine's version that are not there yet

They are made once, when a version is new, and never again: what is read is what was written then. An archive holds the
files of a store without control page and index, as after a reboot, and `content.json`: for each key its sequence, the
size of its value, and its SHA-256. `killed` was not closed and ends in a torn frame: recovery must drop and report it.
`expiring` was closed and uses what only keys that expire need: some had expired, the others do ten years later.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dora_state import Store

FOLDER = Path(__file__).resolve().parent / "golden"
KINDS = ("closed", "killed", "expiring")
YEAR_S = 365 * 86400
LATER_S = 10 * YEAR_S  # about the longest there is
FORMAT = Path(__file__).resolve().parents[2] / "csrc" / "format.h"


def present_version() -> int:
    found = re.search(r"DS_FORMAT_VERSION = (\d+)", FORMAT.read_text())
    assert found
    return int(found[1])


def content(store) -> list[dict[str, list]]:
    """What a store holds, for each keyspace."""
    return [
        {
            key: [sequence, len(value), hashlib.sha256(value).hexdigest()]
            for key, value, sequence in store._scan(keyspace)
        }
        for keyspace in (0, 1)
    ]


def fill(store) -> None:
    """Every kind of frame and record, several segments, values on both sides of each limit."""
    rng = random.Random(1)
    store.put("large", b"seventeen MiB, in a file of its own. " * (17 * 2**20 // 37))
    for i in range(40):
        with store.batch() as batch:
            for size in (0, 1, 7, 8, 200, 4055, 4056, 4057):
                batch.put(f"k{i % 13}/{size}", bytes([rng.randrange(256)]) * size, i % 2)
            batch.delete(f"k{(i + 5) % 13}/200", i % 2)
    store.put("", b"the empty key")
    store.put("größe \u0000", b"a key that is not ASCII")
    store.compact()
    for i in range(30):
        store.put(f"late/{i % 11}", b"late " * i)
    store.delete("late/3")


def fill_with_expiring(store) -> None:
    """Both kinds of records that expire, overwriting and overwritten, moved by compaction or not, expired or not."""
    blob = b"another seventeen MiB, and not for ever. " * (17 * 2**20 // 41)
    store.put("before", b"when nothing in here expired yet")
    with store.batch() as batch:
        batch.put("large", blob, ttl=LATER_S)
        for i in range(20):
            batch.put(f"lease/{i}", bytes([i]) * 100 * i, i % 2, ttl=LATER_S)
            batch.put(f"kept/{i}", bytes([i]) * i, i % 2)
            batch.put(f"short/{i}", b"soon gone", i % 2, ttl=0.02)
    with store.batch() as batch:
        batch.put("lease/4", b"for ever")
        batch.put("kept/4", b"not for ever", ttl=LATER_S)
        batch.delete("lease/6")
        batch.put("short/2", b"renewed in time", ttl=LATER_S)
        batch.put("short/4", b"it stays")
    while "short/0" in store:
        time.sleep(0.005)
    store.compact()
    store.put("late", b"for a while", ttl=LATER_S)
    store.put("gone", b"expired in the last segment", ttl=0.001)
    while "gone" in store:
        time.sleep(0.005)


def tear(path: Path) -> None:
    """The beginning of a frame behind the end of the log: what a power loss may leave."""
    import reader

    end = reader.read_log(path).end
    segment = max(path.glob("*.log"))
    with segment.open("r+b") as file:
        file.seek(end - int(segment.stem, 16) + 8)
        file.write(b"torn" * 10)


def pack(path: Path, into: Path, expected: list) -> None:
    (path / "content.json").write_text(json.dumps(expected, indent=1))
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(into, "w:xz") as archive:
        for file in sorted(path.iterdir()):
            if file.name == "control" or file.name.startswith("index."):
                continue
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mode = file.stat().st_size, 0o600
            with file.open("rb") as data:
                archive.addfile(entry, data)


def archive_of(kind: str) -> Path:
    return FOLDER / f"version-{present_version()}-{kind}.tar.xz"


def make_closed(path: Path, filled: Callable[..., None], kind: str) -> None:
    with Store(str(path)) as store:
        filled(store)
        expected = content(store)
    pack(path, archive_of(kind), expected)


def make_killed(path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            store = Store(str(path))
            fill(store)
            path.with_suffix(".json").write_text(json.dumps(content(store)))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    tear(path)
    pack(path, archive_of("killed"), json.loads(path.with_suffix(".json").read_text()))


def make() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder, kind)
            if archive_of(kind).exists():
                continue
            if kind == "killed":
                make_killed(path)
            else:
                make_closed(path, fill if kind == "closed" else fill_with_expiring, kind)


if __name__ == "__main__":
    make()
