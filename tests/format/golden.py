"""Golden files: stores as an engine of each format version wrote them. Every later engine must read them (I24).

    python tests/format/golden.py      makes the files of the installed engine's version, in tests/format/golden

They are made once, when a version is new, and never again: what is read is what was written then. An archive holds the
files of a store without control page and index, as after a reboot, and `content.json`: for each key its sequence, the
size of its value, and its SHA-256. `killed` was not closed and ends in a torn frame: recovery must drop and report it.
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
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "golden"
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


def tear(path: Path) -> None:
    """The beginning of a frame behind the end of the log: what a power loss may leave."""
    import reader

    end = reader.read_log(path).end
    segment = max(path.glob("*.log"))
    with segment.open("r+b") as file:
        file.seek(end - int(segment.stem, 16) + 8)
        file.write(b"torn" * 10)


def pack(path: Path, name: str, expected: list) -> None:
    (path / "content.json").write_text(json.dumps(expected, indent=1))
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(FOLDER / name, "w:xz") as archive:
        for file in sorted(path.iterdir()):
            if file.name == "control" or file.name.startswith("index."):
                continue
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mode = file.stat().st_size, 0o600
            with file.open("rb") as data:
                archive.addfile(entry, data)


def make() -> None:
    from dora_state import Store

    with tempfile.TemporaryDirectory() as folder:
        closed, killed = Path(folder, "closed"), Path(folder, "killed")
        with Store(str(closed)) as store:
            fill(store)
            pack_of_closed = content(store)
        pack(closed, f"version-{present_version()}-closed.tar.xz", pack_of_closed)
        pid = os.fork()
        if pid == 0:
            try:
                store = Store(str(killed))
                fill(store)
                killed.with_suffix(".json").write_text(json.dumps(content(store)))
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        tear(killed)
        expected = json.loads(killed.with_suffix(".json").read_text())
        pack(killed, f"version-{present_version()}-killed.tar.xz", expected)


if __name__ == "__main__":
    make()
