"""The power goes while an operator works: what its saves say and what its place in the input says never disagree.

An image of the disk takes, for every sector beyond what the store calls synced, any content that the sector had at one
of the moments before, or zeros; below, the last. Newest segments may be missing. tests/c/power_loss.c proves for the
engine that such an image holds a prefix of the commits (with every sync observed, and every moment); this proves for
the runtime that a commit is a step: with the worker stopped anywhere, and between the two stores of shared writes.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from hosting import LEDGER, PATIENCE_S, Hosted, kill, ledger, wait_stopped

from dora_state import Store
from dora_state.runtime import shared_step, step

SECTOR = 512
IMAGES = int(os.environ.get("DORA_STATE_TEST_IMAGES", "150"))
DERIVED = ("control", "index.", "reserve")  # what a reboot removes, or a power loss may

# Saves of several sectors, so that one commit can be torn.
PADDED = LEDGER.replace(
    'save_state("total"',
    'save_state("map", b"%d " % number * 700)\n                save_state("total"',
)
COUNTS = PADDED.replace(
    "class Operator:",
    'from dora_state import kvs_update\n\n    class Operator:\n        shared_writes = "commit"\n',
).replace(
    'send_output("sum"',
    'kvs_update("count", lambda old: b"%d" % (int(old) + 1), default=b"0")\n                send_output("sum"',
)


class Disk:
    """What may be on disk of one store, from looks at its files while nothing writes to them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._versions: dict[str, list[bytes]] = {}
        self._names: list[str] = []
        self._synced = 0
        self._reached: list[tuple[int, int]] = []  # where the log ended after which step

    def look(self) -> None:
        with Store(self._path, read_only=True) as store:
            stats, number = store.stats(), step.read(store).number
        self._synced = stats["synced"]
        self._reached.append((stats["committed"], number))
        self._names = sorted(
            name for name in os.listdir(self._path) if not name.startswith(DERIVED)
        )
        for name in self._names:
            self._versions.setdefault(name, []).append((self._path / name).read_bytes())

    def least(self) -> int:
        """The step that is on disk for sure."""
        return max((number for end, number in self._reached if end <= self._synced), default=0)

    def most(self) -> int:
        return self._reached[-1][1]

    def draw(self, chance: random.Random, to: Path) -> None:
        """Make one thing that may be on this disk."""
        to.mkdir(mode=0o700)
        segments = [name for name in self._names if name.endswith(".log")]
        beyond = [name for name in segments[1:] if int(name[:16], 16) >= self._synced]
        missing = set(
            beyond[chance.randrange(len(beyond)) :] if beyond and chance.random() < 0.3 else ()
        )
        mood = chance.choice(["any", "newest or zero", "newest"])
        for name in self._names:
            if name not in missing:
                (to / name).write_bytes(self._draw_file(chance, name, mood))

    def _draw_file(self, chance: random.Random, name: str, mood: str) -> bytes:
        versions = self._versions[name]
        if not name.endswith(".log"):
            return chance.choice(versions)
        newest = versions[-1]
        first = max(0, self._synced - int(name[:16], 16)) // SECTOR * SECTOR
        drawn = bytearray(newest)
        for at in range(first, len(newest), SECTOR):
            if not any(newest[at : at + SECTOR]) or mood == "newest":
                continue
            old = [b"", *versions] if mood == "any" else [b"", newest]
            sector = chance.choice(old)[at : at + SECTOR].ljust(SECTOR, b"\0")
            keep = max(
                0, self._synced - int(name[:16], 16) - at
            )  # of the sector that is half synced
            drawn[at + keep : at + SECTOR] = sector[keep:]
        return bytes(drawn)


def check(image: Path) -> int:
    """The step that an image has; its state is that of this very step."""
    with Store(image) as store:
        number = step.read(store).number
        expected = {}
        if number:
            expected = {
                "count": b"%d" % number,
                "total": b"%d" % (number * (number - 1) // 2),
                "map": b"%d " % (number - 1) * 700,
            }
        assert store.snapshot() == expected, f"step {number} and state disagree"
        return number


def wait_synced(path: Path, *, at_least: int) -> None:
    """Wait until the store has synced a step by itself. Polled: it tells nobody."""
    deadline = time.monotonic() + PATIENCE_S
    with Store(path, read_only=True) as store:
        assert step.read(store).number >= at_least
        wanted = store.stats()["committed"]
        while store.stats()["synced"] < wanted:
            assert time.monotonic() < deadline, "nothing was synced"
            time.sleep(0.01)


@contextlib.contextmanager
def stopped(pid: int):
    """The worker stands still, wherever it is."""
    kill(pid, signal.SIGSTOP)
    try:
        wait_stopped(pid)
        yield
    finally:
        kill(pid, signal.SIGCONT)


def test_in_every_image_state_and_step_agree_and_what_was_synced_is_there(host, tmp_path):
    hosted = host(PADDED, durability="group").start()
    pid = hosted.wait_running()["worker_pid"]
    disk, chance = Disk(hosted.store_path), random.Random(1)
    seen: set[int] = set()
    moments = 30
    for moment in range(moments):
        sent = 10 * moment
        hosted.send(*range(sent, sent + 10))
        hosted.wait_outputs(sent + chance.randrange(10))
        if moment % 10 == 5:
            wait_synced(hosted.store_path, at_least=disk.most())
        with stopped(pid):
            disk.look()
            for n in range(IMAGES // moments):
                image = tmp_path / f"image-{moment}-{n}"
                disk.draw(chance, image)
                number = check(image)
                assert disk.least() <= number <= disk.most()
                seen.add(number - disk.most())
                if (moment, n) != (moments - 1, 0):
                    shutil.rmtree(image)
    assert disk.least() > 0, "nothing was ever synced"
    assert len(seen) > 3, "no image was torn"
    hosted.finish()

    # A host that starts on one of them goes on from there.
    folder = tmp_path / "after"
    folder.mkdir()
    shutil.copytree(tmp_path / f"image-{moments - 1}-0", folder / "store")
    number = check(folder / "store")
    later = Hosted(folder, PADDED, durability="group")
    try:
        later.start()
        later.send(number)
        assert later.wait_outputs(1) == [ledger(number + 1)[-1]]
        later.finish()
        assert later.step().number == number + 1
    finally:
        later.close()


@pytest.mark.parametrize(
    "point", ["before-prepare", "after-prepare", "after-marker", "after-commit"]
)
def test_with_durable_commits_both_stores_agree_after_the_power_went_between_them(
    host, tmp_path, monkeypatch, point
):
    """What is decided is decided after the recovery, too: the count in the shared store is that of the step."""
    shared = tmp_path / "shared"
    Store(shared).close()
    events = 12
    hosted = host(
        COUNTS,
        durability="commit",
        kill=f"{point}@{events}=stop",
        environment={"DORA_STATE_SHARED": str(shared)},
    ).start()
    monkeypatch.delenv("DORA_STATE_SHARED", raising=False)
    pid = hosted.wait_running()["worker_pid"]
    disks = Disk(hosted.store_path), Disk(shared)
    chance = random.Random(2)
    hosted.send(*range(events - 1))
    hosted.wait_outputs(events - 1)
    for disk in disks:
        disk.look()
    hosted.send(events - 1)
    wait_stopped(pid)
    for disk in disks:
        disk.look()
    for n in range(max(1, IMAGES // 10)):
        images = tmp_path / f"private-{n}", tmp_path / f"shared-{n}"
        for disk, image in zip(disks, images, strict=True):
            disk.draw(chance, image)
        monkeypatch.setenv("DORA_STATE_SHARED", str(images[1]))
        with Store(images[0], durability="commit") as private:
            shared_step.recover(private, "operator", 100)
        number = check(images[0])
        assert number == events - (point in ("before-prepare", "after-prepare"))
        with Store(images[1]) as store:
            assert store["count"] == b"%d" % number
        for image in images:
            shutil.rmtree(image)
    kill(pid)
    assert hosted.wait_outputs(events) == ledger(events)


def test_the_check_sees_a_state_that_is_ahead_of_its_step(tmp_path):
    """What the images would show if saves and step were two commits."""
    with Store(tmp_path / "image") as store:
        store["count"] = b"1"
    with pytest.raises(AssertionError, match="step 0 and state disagree"):
        check(tmp_path / "image")
