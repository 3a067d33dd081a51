"""The three patterns of docs/consistency.md, as they stand there, in processes that are killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dora_state import Store

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "consistency.md"
PATIENCE_S = 60
SPAWN = multiprocessing.get_context("spawn")
KILLS = int(os.environ.get("DORA_STATE_PATTERN_KILLS", "12"))
JOBS = 120
LEASE_S = 0.2


@pytest.fixture(autouse=True)
def patterns(tmp_path, monkeypatch):
    """The code blocks of the section are a module, and there is a shared store for those who import it."""
    section = DOCUMENT.read_text().split("## Three patterns\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "patterns.py").write_text("\n\n".join(map(textwrap.dedent, blocks)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("DORA_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("patterns", None)


@pytest.fixture
def store(tmp_path):
    # As the first process that uses kvs_* would make it.
    from dora_state import location

    location.prepare(tmp_path / "state")
    with Store(tmp_path / "state" / "shared") as store:
        yield store


@pytest.fixture
def crowd():
    """Starts processes, and kills those that are left."""
    processes = []

    def start(role, *arguments):
        process = SPAWN.Process(target=role, args=arguments)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def wait_for(store: Store, key: str) -> None:
    assert store.wait(key, after=0, timeout=PATIENCE_S) is not None, key


# Publish and wait


def publisher(first: int, last: int) -> None:
    import patterns

    for frame in range(first, last + 1):
        patterns.publish(frame, b"%d" % frame * 100)


def follower(name: str, last: int) -> None:
    import patterns

    before = 0
    for frame, sequence in patterns.follow(last):
        assert frame > before
        assert sequence > 0
        before = frame
    patterns.kvs_write(f"done/{name}", b"%d" % before)


def test_followers_see_what_a_publisher_that_is_killed_has_published(store, crowd):
    last = 3000
    followers = [crowd(follower, f"{i}", last) for i in range(2)]
    frame = 0
    chance = random.Random(5)
    for _ in range(4):
        publishing = crowd(publisher, frame + 1, 10**9)
        goal = frame + chance.randrange(1, 200)
        while int(store.get("robot/frame", b"0")) < goal:
            store.wait("robot/frame", after=store.stats()["sequence"], timeout=0.05)
        publishing.kill()
        publishing.join()
        store.settle()
        together = store.get_many(["robot/frame", "robot/pose"])
        frame = int(together["robot/frame"])
        assert together["robot/pose"] == b"%d" % frame * 100  # never one without the other
    crowd(publisher, frame + 1, max(last, frame + 1))
    for i, process in enumerate(followers):
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        assert int(store[f"done/{i}"]) >= last


# Claim


def worker(name: str) -> None:
    import patterns

    me, chance = f"{name} {os.getpid()}".encode(), random.Random()
    patterns.kvs_write(f"pid/{name}", b"%d" % os.getpid())
    while True:
        for job in chance.sample(range(JOBS), JOBS):
            ours = patterns.claim(f"job/{job}", me, LEASE_S)
            if ours is not None:
                with contextlib.suppress(
                    patterns.Conflict
                ):  # on a slow machine: then it cannot finish
                    ours = patterns.renew(f"job/{job}", me, ours, LEASE_S)
                time.sleep(chance.uniform(0, LEASE_S / 4))  # the work
                patterns.finish(f"job/{job}", ours, me)


def kill_some(store: Store, crowd, role, names: list[str], until) -> int:
    """Kills one of the processes after the other, and starts another in its place, until there is enough."""
    living = {name: crowd(role, name) for name in names}
    for name in names:
        wait_for(store, f"pid/{name}")
    chance, kills = random.Random(7), 0
    while kills < KILLS or not until():
        time.sleep(chance.uniform(0, 0.05))
        name = chance.choice(names)
        if kills < KILLS and store.get(f"pid/{name}") == b"%d" % living[name].pid:
            os.kill(living[name].pid, signal.SIGKILL)
            living[name].join()
            living[name] = crowd(role, name)
            kills += 1
    for process in living.values():
        process.kill()
        process.join()
    store.settle()
    return kills


def test_a_job_has_one_result_although_its_owners_are_killed(store, crowd):
    results: dict[int, int] = {}

    def all_done() -> bool:
        for job in range(JOBS):
            if f"job/{job}/result" in store:
                sequence = store.entry(f"job/{job}/result").sequence
                assert results.setdefault(job, sequence) == sequence, "a second result"
        return len(results) == JOBS

    assert kill_some(store, crowd, worker, ["a", "b", "c"], all_done) == KILLS
    assert all_done()
    assert not [key for key in store if key.endswith("/owner")]  # nobody has to clean up


def test_who_was_too_slow_does_not_finish(store):
    import patterns

    ours = patterns.claim("job", b"slow", 0.001)
    while "job/owner" in store:
        pass
    theirs = patterns.claim("job", b"fast", 1000)
    assert theirs is not None
    assert patterns.claim("job", b"third", 1000) is None
    assert not patterns.finish("job", ours, b"of the slow")
    with pytest.raises(patterns.Conflict):
        patterns.renew("job", b"slow", ours, 1)
    assert "job/result" not in store
    theirs = patterns.renew("job", b"fast", theirs, 1000)
    assert patterns.finish("job", theirs, b"of the fast")
    assert store["job/result"] == b"of the fast"


# Count


def counter(name: str) -> None:
    import patterns

    patterns.kvs_write(f"pid/{name}", b"%d" % os.getpid())
    notes = os.open(Path("notes", name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while True:
        os.write(notes, b"b")  # begun
        patterns.count("pieces")
        os.write(notes, b"a")  # acknowledged


def test_no_count_is_lost_and_none_is_invented_although_counters_are_killed(store, crowd, tmp_path):
    names = ["a", "b", "c"]
    kills = kill_some(
        store, crowd, counter, names, until=lambda: int(store.get("pieces", b"0")) > 1000
    )
    notes = b"".join((tmp_path / "notes" / name).read_bytes() for name in names)
    begun, acknowledged = notes.count(b"b"), notes.count(b"a")
    assert acknowledged <= int(store["pieces"]) <= begun
    assert begun - acknowledged <= kills + len(names)


def test_the_section_is_what_is_imported(tmp_path):
    import patterns

    assert Path(patterns.__file__).parent == tmp_path
    with contextlib.suppress(KeyError):
        patterns.kvs_entry("nothing")
