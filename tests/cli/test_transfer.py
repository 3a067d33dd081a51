"""export and import: what goes out comes in, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import time

import msgpack
import pytest
from program import PROGRAM, listing

from dora_state import Store, errors, portable
from dora_state._core import RawKey

LARGE = 700  # values of 60,000 bytes: more than one commit takes


def snapshot(path) -> dict[str, bytes]:
    with Store(path, read_only=True, create=False) as store:
        return store.snapshot()


@pytest.fixture
def other(tmp_path):
    """An empty store of its own."""
    path = tmp_path / "other"
    Store(path).close()
    return path


def test_what_goes_out_comes_in(call, state, other):
    with Store(state / "shared") as store:
        store.put(RawKey(b"\xff\x00"), b"binary")
        store.update({"empty": b"", "large": b"x" * 3_000_001, "": b"no name"})
    assert call("export", "file").code == 0
    assert call("import", "file", "--store", other).text == "7 keys\n"
    assert snapshot(other) == snapshot(state / "shared")


def test_through_a_pipe_and_by_prefix(command, state, other):
    exported = command("export", "-", "--prefix", "map/").out
    assert command("import", "-", "--store", other, input=exported).code == 0
    assert snapshot(other) == {"map/origin": b"\x01\x02", "map/name": b"hall"}


def test_the_file_is_what_its_documentation_says(call, folder, state):
    """A second reader, from docs/export.md alone."""
    assert call("export", "file").code == 0
    data = (folder / "file").read_bytes()
    assert data[:8] == b"\x8bDSEXP\r\n"
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    header, *items, end = msgpack.Unpacker(io.BytesIO(data[8:-32]))
    assert (header["format"], header["sequence"], header["node"]) == (1, 1, None)
    assert sorted(zip(items[::2], items[1::2], strict=True)) == [
        ([b"map/name", 4, None], b"hall"),
        ([b"map/origin", 2, None], b"\x01\x02"),
        ([b"mode", 5, None], b"drive"),
    ]
    assert end == {"keys": 3, "bytes": 11}


def test_a_time_to_live_goes_on(call, state, other):
    with Store(state / "shared") as store:
        store.put("lease", b"mine", ttl=1000)
    assert call("export", "file").code == 0
    assert call("import", "file", "--store", other).code == 0
    record = json.loads(call("list", "lease", "--store", other, "--format", "json").text)
    assert 0 < record["ttl"] <= 1000
    said = call("list", "--store", other)
    assert said.lines[0].split() == ["KEY", "SIZE", "SEQUENCE", "TTL", "VALUE"]
    looks = (["list", "lease"], ["get", "lease"])
    left = [json.loads(call(*look, "--store", other, "--format", "json").text) for look in looks]
    assert 0 < left[1]["ttl"] <= left[0]["ttl"] <= record["ttl"]
    for look in ("list", "get"):
        assert "ttl" not in json.loads(call(look, "mode", "--format", "json").text)


def test_export_does_not_replace_a_file_unless_asked(call, folder, state):
    (folder / "file").write_text("precious")
    said = call("export", "file")
    assert (said.code, "--force" in said.error) == (2, True)
    assert (folder / "file").read_text() == "precious"
    assert call("export", "file", "--force").code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["file", "state"]


def test_an_export_that_has_no_place_says_so(call, folder, state):
    said = call("export", "nowhere/file")
    assert (said.code, said.error) == (2, "error: nowhere/file: No such file or directory\n")


def test_import_does_not_replace_values_unless_asked(call, folder, state, other):
    with Store(other) as store:
        store.update({"mode": b"mine", "own": b"kept"})
    call("export", "file")
    said = call("import", "file", "--store", other)
    assert said.code == 2
    assert "1 of the keys are in" in said.error
    assert "such as mode" in said.error
    assert snapshot(other) == {"mode": b"mine", "own": b"kept"}
    assert call("import", "file", "--store", other, "--overwrite").code == 0
    assert snapshot(other) == {**snapshot(state / "shared"), "own": b"kept"}


def test_a_store_is_made_only_when_asked(call, folder, state, tmp_path):
    call("export", "file")
    before = listing(tmp_path)
    assert call("import", "file", "--state-dir", tmp_path / "new").code == 2
    assert listing(tmp_path) == before
    assert call("import", "file", "--state-dir", tmp_path / "new", "--create").code == 0
    assert snapshot(tmp_path / "new" / "shared") == snapshot(state / "shared")
    place = ("--state-dir", tmp_path / "new", "--node", "arm/left")
    assert call("import", "file", *place, "--create").code == 0
    assert call("list", *place, "--keys").lines == sorted(snapshot(state / "shared"))


def damaged_files(data: bytes) -> list[tuple[str, bytes]]:
    chance = random.Random(1)
    files = [(f"cut at {at}", data[:at]) for at in range(len(data))]
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        files.append((f"flipped at {at}", bytes(flipped)))
    files.append(("longer", data + b"\0"))
    files.append(("twice", data + data))
    files.append(("something else", b"PK\x03\x04" * 100))
    return files


def test_a_file_that_is_cut_or_altered_is_refused(call, folder, state):
    """Every length and every byte; the reader refuses, and of a sample that nothing has changed is seen, too."""
    call("export", "file")
    files = damaged_files((folder / "file").read_bytes())
    for what, data in files:
        with pytest.raises(errors.FormatError):
            list(portable.Reader(io.BytesIO(data), what).entries())
    before = listing(folder / "state")
    for what, data in random.Random(2).sample(files, 12):
        (folder / "bad").write_bytes(data)
        said = call("import", "bad", "--overwrite")
        assert said.code == 2, what
        assert said.error.startswith("error: bad ")
        assert "hint: " in said.error
        assert listing(folder / "state") == before, what


def test_a_newer_format_is_refused(tmp_path):
    body = portable.MAGIC + msgpack.packb({"format": 2}) + msgpack.packb({"keys": 0, "bytes": 0})
    file = io.BytesIO(body + hashlib.sha256(body).digest())
    with pytest.raises(errors.FormatError, match="format 2"):
        portable.Reader(file, "file")


def test_a_running_dataflow_takes_what_fits_into_one_commit(call, state, other):
    with Store(other) as store:
        store.update({f"key-{number}": b"x" for number in range(1000)})
    call("export", "file", "--store", other)
    with Store(state / "shared") as running:
        last = running.stats()["sequence"]
        assert call("import", "file").code == 0
        commits = list(running.changes(after=last))
        assert len(commits) == 1
        assert len(commits[0][1]) == 1000


@pytest.fixture(scope="module")
def large_export(tmp_path_factory):
    """A file that takes more than one commit, and what it holds."""
    folder = tmp_path_factory.mktemp("large")
    values = {f"{number}": os.urandom(16) * 3750 for number in range(LARGE)}
    with Store(folder / "store") as store:
        for key, value in values.items():
            store[key] = value
    command = [PROGRAM, "export", folder / "file", "--store", folder / "store"]
    subprocess.run(command, check=True)
    return folder / "file", values


def test_a_large_file_needs_the_store_for_itself(call, state, large_export):
    file, values = large_export
    before = snapshot(state / "shared")
    with Store(state / "shared"):
        said = call("import", file)
        assert said.code == 5, said
        assert "hint: stop the dataflow" in said.error
    assert snapshot(state / "shared") == before
    with Store(state / "shared") as store:
        sequence = store.put("7", b"mine")
    said = call("import", file)
    assert (said.code, "such as 7" in said.error) == (2, True)
    assert snapshot(state / "shared") == {**before, "7": b"mine"}
    assert call("import", file, "--overwrite").code == 0
    assert snapshot(state / "shared") == {**before, **values}
    with Store(state / "shared") as store:
        assert store.put("a", b"b") > sequence, "sequences go on"
    assert sorted(path.name for path in state.iterdir() if "draft" in path.name) == []


def test_a_large_file_that_is_damaged_at_its_end_changes_nothing(call, folder, state, large_export):
    file, _ = large_export
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    (folder / "bad").write_bytes(data)
    before = snapshot(state / "shared")
    assert call("import", "bad").code == 2
    assert snapshot(state / "shared") == before
    assert not (state / "shared.draft").exists()


def _copy(state, folder):
    shutil.copytree(state / "shared", folder / "copy")
    return folder / "copy"


def test_an_import_that_is_killed_is_whole_or_has_not_been(command, folder, state, large_export):
    """At random moments, and from each on with what the killed ones have left behind.

    Each third is killed when its new store has begun to be written, so some are surely killed in the middle.
    """
    file, values = large_export
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    before = snapshot(state / "shared")
    whole = {**before, **values}
    draft = state / "shared.draft"
    seen = {True: 0, False: 0}
    in_the_middle = 0
    begin = time.monotonic()
    assert command("import", file, "--overwrite", "--store", _copy(state, folder)).code == 0
    took = time.monotonic() - begin
    for number in range(int(os.environ.get("DORA_STATE_KILLS", "12"))):
        with subprocess.Popen(
            [PROGRAM, "import", file], cwd=folder, stdout=subprocess.DEVNULL
        ) as program:
            if number % 3 == 0:
                _wait_for_growth(draft, program)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(chance.uniform(0.3, 1.2) * took)
            program.kill()
        in_the_middle += program.returncode == -signal.SIGKILL and draft.exists()
        found = snapshot(state / "shared")
        assert found in (before, whole)
        seen[found == whole] += 1
        if found == whole:
            with Store(state / "shared") as store:  # for the next round
                batch = store.batch()
                for key in values:
                    batch.delete(key)
                batch.commit()
            assert snapshot(state / "shared") == before
    print(f"imported: {seen[True]}, not: {seen[False]}; killed with a draft: {in_the_middle}")
    assert in_the_middle > 0
    assert seen[False] > 0
    assert command("import", file).code == 0
    assert snapshot(state / "shared") == whole
    assert not draft.exists()


def _wait_for_growth(draft, program):
    """Until the import writes a draft that is not what a killed one has left, or has ended."""
    before = _newest(draft)
    deadline = time.monotonic() + 60
    while _newest(draft) == before and program.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _newest(draft):
    try:
        return max((path.stat().st_mtime_ns, path.name) for path in draft.iterdir())
    except (FileNotFoundError, ValueError):
        return None


def test_an_export_that_is_killed_leaves_no_file_of_its_name(folder, state):
    with Store(state / "shared") as store:
        for number in range(100):
            store[f"{number}"] = b"x" * 1_000_000
    for delay in (0.2, 0.3, 0.4):
        with subprocess.Popen([PROGRAM, "export", "file"], cwd=folder) as program:
            try:
                program.wait(delay)
            except subprocess.TimeoutExpired:
                program.kill()
        if (folder / "file").exists():
            with open(folder / "file", "rb") as file:
                assert len(list(portable.Reader(file, "file").entries())) == 103
            (folder / "file").unlink()
