"""Changing stores: what is written, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from program import PROGRAM, listing

from dora_state import Store, codec
from dora_state.lockfile import LockFile


def shared(state) -> dict[str, bytes]:
    with Store(state / "shared", read_only=True) as store:
        return store.snapshot()


def test_put_takes_text_a_file_or_stdin(command, call, folder, state):
    assert call("put", "a", "Jürgen 🚗").text == "2\n"
    (folder / "value").write_bytes(b"\0" * 100_000)
    (folder / "empty").touch()
    assert call("put", "b", "--file", "value").text == "3\n"
    assert call("put", "c", "--file", "empty").code == 0
    assert command("put", "d", input=b"from stdin").code == 0
    assert command("put", "e", "--file", "-", input=b"\xff").code == 0
    found = shared(state)
    assert found["a"].decode() == "Jürgen 🚗"
    assert found["b"] == b"\0" * 100_000
    assert (found["c"], found["d"], found["e"]) == (b"", b"from stdin", b"\xff")


def test_put_json_is_kept_as_msgpack(call, state):
    assert call("put", "a", '{"x": [1, 2.5, null]}', "--json").code == 0
    assert codec.decode(shared(state)["a"]) == {"x": [1, 2.5, None]}
    said = call("put", "a", "{x}", "--json")
    assert (said.code, "not JSON" in said.error) == (2, True)


def test_put_only_if_nobody_was_faster(call, state):
    assert call("put", "mode", "stop", "--expected", 1).code == 0
    said = call("put", "mode", "go", "--expected", 1)
    assert said.code == 1
    assert "error: " in said.error
    assert call("put", "mode", "go", "--expected", 0).code == 1
    assert call("put", "new", "go", "--expected", 0).code == 0
    assert shared(state)["mode"] == b"stop"


def test_put_with_a_time_to_live(call, state):
    assert call("put", "beat", "1", "--ttl", 0.05).code == 0
    with Store(state / "shared", read_only=True) as store:
        deadline = time.monotonic() + 60
        while "beat" in store:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert call("get", "beat").code == 3
    assert "beat" not in call("list", "--keys").lines
    assert call("put", "beat", "1", "--ttl", 0).code == 2


def test_delete_is_one_commit_or_none(call, state):
    said = call("delete", "mode", "nothing", "map/name")
    assert said.code == 3
    assert "no key nothing" in said.error
    assert len(shared(state)) == 3
    assert call("delete", "mode", "nothing", "map/name", "--missing-ok").text == "2\n"
    assert list(shared(state)) == ["map/origin"]


def test_compact(call, state):
    with Store(state / "shared") as store:
        for _ in range(30):
            store["large"] = b"x" * 100_000
    assert call("compact").lines[0].split() == ["STORE", "BEFORE", "AFTER"]
    assert shared(state)["large"] == b"x" * 100_000


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["put", "a", "b", "--file", "x"], 2),
        (["put", "a", "--file", "nothing"], 2),
        (["put", "a", "--file", "."], 2),
        (["put", "k" * 70_000, "v"], 2),
        (["put", "-e", "\\q", "v"], 2),
        (["get"], 2),
        (["put", "a", "b", "--expected", "-1"], 2),
        (["put", "a", "b", "--ttl", "nan"], 2),
        (["watch", "--timeout", "nan"], 2),
        (["watch", "--timeout", "inf"], 2),
        (["watch", "--timeout", "-1"], 2),
        (["reload", "x", "--timeout", "nan"], 2),
        (["run", "x.py", "--event-deadline", "nan"], 2),
        (["list", "--format", "xml"], 2),
        (["delete"], 2),
        (["fly"], 2),
        (["import", "nothing"], 2),
    ],
    ids=lambda each: " ".join(each)[:30] if isinstance(each, list) else "",
)
def test_bad_input_changes_nothing(call, folder, state, arguments, code):
    before = shared(state)
    names = {name for name in listing(folder) if not name.endswith(("control", "reserve"))}
    said = call(*arguments)
    assert said.code == code, said
    assert said.error.startswith("error: ")
    assert len(said.error.splitlines()) <= 2
    assert shared(state) == before
    now = {name for name in listing(folder) if not name.endswith(("control", "reserve"))}
    assert {name for name in now if "index." not in name} == {
        name for name in names if "index." not in name
    }


# Beside a running operator

CHANGES = [["put", "a", "b"], ["delete", "pose"], ["compact"], ["repair"]]


@pytest.mark.parametrize("arguments", CHANGES, ids=" ".join)
def test_the_store_of_a_running_operator_is_not_changed(call, state, arguments):
    host = LockFile(state / "arm%2Fleft.lock")
    assert host.acquire()
    try:
        for place in (["--node", "arm/left"], ["--store", state / "arm%2Fleft"]):
            said = call(*arguments, *place)
            assert said.code == 5, said
            assert "operator of node 'arm/left' is running" in said.error
            assert "hint: stop the dataflow first" in said.error
            assert call("get", "pose", *place).out == b"\0" * 16, "looking is fine"
    finally:
        host.close()
    assert call("put", "a", "b", "--node", "arm/left").code == 0


def test_a_host_does_not_start_while_its_store_is_changed(folder, state):
    """`put` waits for its value with the store not yet opened; once it writes, it has the lock."""
    code = """if True:
        import sys
        from pathlib import Path
        from dora_state.cli import places
        place = places.find("arm/left", None, None, None)
        with place.changed():
            print("held", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout.readline() == "held\n"
        host = LockFile(state / "arm%2Fleft.lock")
        assert not host.acquire()
        writer.stdin.close()
        assert host.acquire(timeout_s=60)
        host.close()


def test_the_record_of_a_host_is_left_alone(call, state):
    before = (state / "arm%2Fleft.lock").read_bytes()
    call("put", "a", "b", "--node", "arm/left")
    assert (state / "arm%2Fleft.lock").read_bytes() == before


def test_a_change_that_the_next_run_will_not_see_is_told(call, state):
    assert "note:" not in call("put", "a", "b", "--node", "arm/left").error
    (state / "arm%2Fleft.lock").write_text('{"ended": "clean", "node_id": "arm/left"}')
    assert "the next one starts empty unless" in call("put", "a", "b", "--node", "arm/left").error
    (state / "shared.lock").write_text(
        '{"dataflow_id": "d1", "open": [], "operators": true, "keep": false}'
    )
    assert "the next one starts empty unless" in call("put", "a", "b").error


def test_the_shared_store_is_changed_while_others_use_it(call, state):
    with Store(state / "shared") as store:
        assert call("put", "a", "b").code == 0
        assert store["a"] == b"b"
        assert store.wait("a", after=1, timeout=0) is not None
        assert call("compact").code == 0
        said = call("repair")
        assert (said.code, "is open" in said.error) == (5, True)


def test_repair_is_refused_while_somebody_reads(call, state):
    with subprocess.Popen(
        [PROGRAM, "watch", "--after", "0", "--state-dir", state], stdout=subprocess.PIPE
    ) as watch:
        watch.stdout.readline()
        assert call("repair").code == 5
        watch.terminate()


# A full disk


def test_a_full_disk(tmp_path):
    script = """
        mount -t tmpfs -o size=1m none "$1" && cd "$1" || exit 77
        "$2" -c 'import dora_state, sys; dora_state.Store("s").update({"a": b"1", "b": b""})' || exit 1
        dd if=/dev/zero bs=100000 count=20 2>/dev/null | "$3" put big --store s
        echo "code $?"
        "$3" get a --store s
        dd if=/dev/zero of=filler bs=10k 2>/dev/null
        "$3" export out.dse --store s; echo "export $?"; ls -A
        "$3" delete b --store s; "$3" list --keys --store s
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--user", "--mount", "--map-root-user"]
    try:
        probe = subprocess.run([*unshare, "true"], capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode:
        pytest.skip("user namespaces are not allowed here")
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", disk, sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no tmpfs here")
    said = ["code 1", "1export 1", "filler", "s", "2", "a"]
    assert done.stdout.splitlines() == said, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, done.stderr
    assert all("No space left on device" in line for line in errors), done.stderr
    assert errors[1] == "error: out.dse: No space left on device"


# Large values


@pytest.mark.skipif("DORA_STATE_LARGE" not in os.environ, reason="takes half a minute and 7 GB")
@pytest.mark.timeout(600)
def test_a_value_of_more_than_2_gib_goes_in_and_out(command, folder, state):
    size = (2 << 30) + 5
    with open(folder / "large", "wb") as file:
        file.truncate(size - 1)
        file.seek(size - 1)
        file.write(b"!")
    assert command("put", "large", "--file", "large").code == 0
    assert "2.0 GiB" in command("list", "large").text
    with subprocess.Popen([PROGRAM, "get", "large"], cwd=folder, stdout=subprocess.PIPE) as program:
        found = 0
        last = b""
        while piece := program.stdout.read(1 << 24):
            found += len(piece)
            last = piece[-1:]
        assert (found, last) == (size, b"!")
