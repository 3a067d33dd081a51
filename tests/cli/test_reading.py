"""Looking into stores: what is shown, and that nothing changes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy
import pytest
from program import PROGRAM, listing

from dora_state import Store, codec, location, run_record
from dora_state._core import RawKey
from dora_state.cli import output
from dora_state.lockfile import LockFile
from dora_state.runtime import status

READING = [
    ["list"],
    ["list", "--format", "json"],
    ["list", "--node", "arm/left"],
    ["get", "mode"],
    ["get", "mode", "--format", "json"],
    ["stats"],
    ["stats", "--format", "json"],
    ["verify"],
    ["watch", "--after", "0", "--timeout", "0"],
    ["export", "-"],
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_reading_changes_no_byte(call, folder, state, arguments):
    before = listing(folder.parent)
    assert call(*arguments).code == 0
    assert listing(folder.parent) == before


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_reading_changes_no_byte_of_a_store_without_an_index(call, folder, state, arguments):
    """As after a boot, or in a copy: what is derived is not there, and is not made."""
    for store in ("shared", location.escape("arm/left")):
        for path in (state / store).iterdir():
            if path.suffix not in (".log", ".blob") and path.name != "floor":
                path.unlink()
    before = listing(folder.parent)
    assert call(*arguments).code == 0
    assert listing(folder.parent) == before


@pytest.mark.parametrize(
    "arguments",
    [*READING, ["put", "a", "b"], ["delete", "a"], ["compact"], ["repair"]],
    ids=" ".join,
)
@pytest.mark.parametrize("place", [[], ["--state-dir", "nix"], ["--store", "nix"]], ids=" ".join)
def test_nothing_is_made_where_nothing_is(call, folder, arguments, place):
    if "--node" in arguments and "--store" in place:
        pytest.skip("they exclude each other")
    before = listing(folder.parent)
    said = call(*arguments, *place)
    assert said.code == 2
    assert said.error.startswith("error: ")
    assert "\nhint: " in said.error
    assert listing(folder.parent) == before


def test_list(call, state):
    said = call("list")
    assert [line.split() for line in said.lines] == [
        ["KEY", "SIZE", "SEQUENCE", "VALUE"],
        ["map/name", "4", "B", "1", "hall"],
        ["map/origin", "2", "B", "1", "01", "02"],
        ["mode", "5", "B", "1", "drive"],
    ]
    assert call("list", "map/").lines[1:] == said.lines[1:3]
    assert call("list", "map/", "--keys").lines == ["map/name", "map/origin"]
    records = [json.loads(line) for line in call("list", "mo", "--format", "json").lines]
    assert records == [{"key": "mode", "size": 5, "sequence": 1, "value": "drive"}]


def test_a_private_store(call, state):
    assert call("list", "--node", "arm/left", "--keys").text == "pose\n"
    said = call("list", "--node", "arm")
    assert said.code == 2
    assert "error: node 'arm' has no state in" in said.error
    assert "hint: there is state of arm/left: use --node" in said.error


def test_get_gives_the_very_bytes(call, state):
    value = bytes(range(256)) * 5000
    with Store(state / "shared") as store:
        store["blob"] = value
    assert call("get", "blob").out == value
    assert call("get", "blob", "--raw").out == value


def test_a_missing_key_has_an_exit_code_of_its_own(call, state):
    said = call("get", "nothing")
    assert said.code == 3
    assert said.error.splitlines()[0].startswith("error: there is no key nothing in")
    assert said.out == b""


VALUES = {
    "text": ("Jürgen 🚗\nand\tso on".encode(), "text", "Jürgen 🚗\nand\tso on"),
    "msgpack": (
        codec.encode({"a": [1, None], "b": b"\xff", 3: float("nan")}),
        "msgpack",
        {"a": [1, None], "b": {"base64": "/w=="}, "3": "nan"},
    ),
    "array": (codec.encode(numpy.eye(2)), "msgpack", [[1.0, 0.0], [0.0, 1.0]]),
    "types": (codec.encode((1, {2}, 3j)), "msgpack", [1, [2], "3j"]),
    "bytes": (b"\x93\xff\x00", "bytes", {"base64": "k/8A"}),
    "control": (b"\x1b[31mred\x1b[0m!", "bytes", {"base64": "G1szMW1yZWQbWzBtIQ=="}),
    "empty": (b"", "text", ""),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_decoded(call, state, name):
    value, kind, content = VALUES[name]
    with Store(state / "shared") as store:
        sequence = store.put("k", value)
    record = json.loads(call("get", "k", "--format", "json").text)
    assert record == {
        "key": "k",
        "size": len(value),
        "sequence": sequence,
        "type": kind,
        "value": content,
    }


def test_typed_state_is_msgpack_also_where_it_looks_like_text(call, state):
    with Store(state / "shared") as store:
        store.update({"@count": codec.encode(104), "count": codec.encode(104)})
    assert json.loads(call("get", "@count", "--format", "json").text)["value"] == 104
    assert json.loads(call("get", "count", "--format", "json").text)["value"] == "h"
    assert call("list", "@").lines[1].split()[-1] == "104"


def test_a_numpy_file_is_decoded(call, state):
    file = io.BytesIO()
    numpy.save(file, numpy.arange(3))
    with Store(state / "shared") as store:
        store["k"] = file.getvalue()
    assert json.loads(call("get", "k", "--format", "json").text)["value"] == [0, 1, 2]
    assert call("list", "k").lines[1].endswith("array int64 (3,)")


def test_large_values_are_shown_by_their_beginning(call, state):
    with Store(state / "shared") as store:
        store["a"] = codec.encode(numpy.zeros((480, 640), "f4"))
        store["b"] = b"\xfe" * 1_000_000
        store["c"] = "ü".encode() * 1_000_000
    shown = [line.split("  ")[-1] for line in call("list").lines[1:4]]
    assert shown[0] == "array float32 (480, 640)"
    assert shown[1].startswith("fe fe")
    assert shown[2].startswith("üüü")
    assert all(len(each) <= 60 for each in shown)


def on_a_terminal(*arguments: object, cwd) -> str:
    """What the program prints when its standard output is a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, *map(str, arguments)], cwd=cwd, stdout=slave, stdin=slave, stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 65536):
                shown += piece
        except OSError:  # so Linux says that the other side is closed
            pass
        assert process.wait() == 0, shown
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


def test_a_bar_reaches_its_end_also_when_what_is_measured_shrinks(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.progress("work", 1000) as tell:
        for done in (400, 0):
            tell(done)
    assert "100%" in terminal.getvalue()


def test_on_a_terminal_values_are_for_people(folder, state):
    with Store(state / "shared") as store:
        store["bytes"] = b"\x1b[31m" + bytes(range(20))
        store["text"] = b"two\nlines"
    shown = on_a_terminal("get", "bytes", cwd=folder)
    assert "\x1b" not in shown
    assert shown.splitlines() == [
        "00000000  1b 5b 33 31 6d 00 01 02  03 04 05 06 07 08 09 0a  .[31m...........",
        "00000010  0b 0c 0d 0e 0f 10 11 12  13                       .........",
    ]
    assert on_a_terminal("get", "text", cwd=folder) == "two\nlines\n"
    assert on_a_terminal("get", "text", "--raw", cwd=folder) == "two\nlines"


def test_long_work_has_a_progress_bar_on_a_terminal(folder, state):
    with Store(state / "shared") as store:
        store["large"] = b"x" * 3_000_000
    for arguments in (
        ["verify"],
        ["compact"],
        ["export", "file"],
        ["import", "file", "--overwrite"],
        ["repair"],
    ):
        shown = on_a_terminal(*arguments, cwd=folder)
        assert arguments[0] in shown
        assert "100%" in shown


def test_stats(call, state):
    lines = [line.split() for line in call("stats").lines]
    assert lines[0] == ["state", "of", str(state)]
    assert lines[2] == ["STORE", "KEYS", "LIVE", "LOG", "SEQUENCE", "STATE"]
    assert (lines[3][:2], lines[3][-2:]) == (["(shared)", "3"], ["1", "ok"])
    assert (lines[4][:2], lines[4][-2:]) == (["arm/left", "1"], ["1", "ok"])
    shared, private = (json.loads(line) for line in call("stats", "--format", "json").lines)
    assert (shared["node"], shared["keys"]) == (None, 3)
    assert (private["node"], private["keys"]) == ("arm/left", 1)


def test_stats_tell_an_operator_that_runs_from_one_whose_host_was_killed(call, state):
    record = {"state": "running", "host_pid": 11, "worker_pid": 12, "last_crash": None}
    with Store(state / "shared") as shared:
        status.write(shared, "arm/left", record)
        status.write(shared, "gone", {**record, "state": "ended"})
    lock = LockFile(state / f"{location.escape('arm/left')}.lock")
    for held, seen in ((True, ["running", "11", "12"]), (False, ["killed", "-", "-"])):
        if held:
            assert lock.acquire()
        else:
            lock.close()
        before = listing(state)
        operators = {line.split()[0]: line.split()[1:4] for line in call("stats").lines[-2:]}
        assert operators == {"arm/left": seen, "gone": ["ended", "11", "12"]}
        told = [json.loads(line) for line in call("stats", "--format", "json").lines[-2:]]
        assert [each["alive"] for each in told] == [held, False]
        assert listing(state) == before


def test_verify(call, state):
    assert [line.split() for line in call("verify").lines] == [
        ["STORE", "FRAMES", "STATE"],
        ["(shared)", "1", "ok"],
        ["arm/left", "1", "ok"],
    ]
    assert len(call("verify", "--node", "arm/left").lines) == 2


def damage(state) -> None:
    with Store(state / "shared") as store:
        store["more"] = b"x" * 1000
    log = next((state / "shared").glob("*.log"))
    data = bytearray(log.read_bytes())
    data[data.index(b"hall")] ^= 1
    log.write_bytes(data)
    for path in (state / "shared").iterdir():
        if path.suffix != ".log" and path.name != "floor":
            path.unlink()


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["get", "mode"],
        ["watch"],
        ["put", "a", "b"],
        ["export", "-"],
        ["stats"],
        ["stats", "--format", "json"],
        ["verify", "--format", "json"],
        ["verify"],
    ],
    ids=" ".join,
)
def test_a_damaged_store_is_told(call, folder, state, arguments):
    damage(state)
    before = listing(folder)
    said = call(*arguments)
    assert said.code == 4, said
    assert said.error.startswith("error: ")
    assert "hint: " in said.error
    assert "repair" in said.error.splitlines()[-1]
    assert listing(folder) == before or arguments[0] == "put"
    assert call("list", "--node", "arm/left").code == 0, "the other store is well"


def test_a_damaged_store_is_repaired(call, state):
    damage(state)
    said = call("repair")
    assert said.code == 0, said
    assert said.lines[0].split()[:3] == ["STORE", "COMMITS", "DAMAGES"]
    assert "shared.damaged-1" in said.text
    assert call("verify").code == 0
    assert call("list", "--keys").text == "more\n"


# Where


def test_the_nearest_state_is_found(call, folder, state, tmp_path, monkeypatch):
    other = tmp_path / "other"
    location.prepare(other)
    with Store(other / "shared") as store:
        store["here"] = b"other"
    run_record.publish("0190-aaaa", other)
    assert call("list", "--keys").lines == ["map/name", "map/origin", "mode"], "beside us"
    assert call("list", "--keys", "--dataflow", "0190").lines == ["here"], "by the run"
    assert call("list", "--keys", "--state-dir", other).lines == ["here"]
    assert call("list", "--keys", "--store", other / "shared").lines == ["here"]
    monkeypatch.setenv("DORA_STATE_DIR", str(other))
    assert call("list", "--keys").lines == ["here"], "what the environment says"
    monkeypatch.delenv("DORA_STATE_DIR")
    shutil.rmtree(state)
    assert call("list", "--keys").lines == ["here"], "the latest run"
    last = tmp_path / "last"
    location.prepare(last)
    Store(last / "shared").close()
    run_record.publish("0190-bbbb", last)
    assert call("list", "--keys").lines == []
    said = call("list", "--dataflow", "0190")
    assert said.code == 2
    assert "beginning of 2 runs" in said.error


@pytest.mark.parametrize(
    "options",
    [
        ["--store", "a", "--state-dir", "b"],
        ["--store", "a", "--node", "b"],
        ["--dataflow", "a", "--state-dir", "b"],
    ],
    ids=" ".join,
)
def test_options_that_exclude_each_other(call, options):
    said = call("list", *options)
    assert said.code == 2
    assert "exclude each other" in said.error


def test_something_else_is_not_a_state_directory(call, folder):
    (folder / "thesis.tex").touch()
    for option in ("--state-dir", "--store"):
        said = call("list", option, ".")
        assert said.code == 2, said
        assert "hint: " in said.error
    (folder / ".dora-state").write_text('{"format": 99}')
    assert "format 99" in call("list", "--state-dir", ".").error


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_the_state_of_another_user(command, folder, state):
    folder.chmod(0o755)
    os.chown(state, 12345, 12345)
    for path in state.rglob("*"):
        os.chown(path, 12345, 12345)
    for arguments in (["put", "a", "b"], ["delete", "mode"], ["compact"], ["repair"]):
        said = command(*arguments)
        assert said.code == 2, said
        assert "belongs to another user (uid 12345)" in said.error
    assert command("list").code == 0, "root may look"
    code = f"""if True:
        import os, sys
        from dora_state.cli import list_, main  # while we may read the packages
        os.setgid(54321); os.setuid(54321)
        sys.exit(main(["list", "--state-dir", {str(state)!r}]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "Permission denied" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("command", ["list", "stats", "verify"])
def test_a_store_that_one_may_not_read(command):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are not for other users
        os.chmod(folder, 0o755)
        with Store(f"{folder}/store") as store:
            store["a"] = b"1"
        code = f"""if True:
            import os, sys
            from dora_state.cli import list_, main, stats, verify
            os.setgid(54321); os.setuid(54321)
            sys.exit(main(["{command}", "--store", {folder + "/store"!r}]))
        """
        python = [sys.executable, "-c", code]
        # Not by the option's own check, which looks at the directory.
        os.chmod(f"{folder}/store", 0o755)
        done = subprocess.run(python, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"error: {folder}/store/"), done.stderr
    assert "Permission denied" in done.stderr
    assert "hint: check the owner" in done.stderr


# Pipes and signals


@pytest.mark.parametrize(
    "arguments", [["get", "blob"], ["export", "-"], ["list", "--keys"]], ids=" ".join
)
def test_a_reader_that_goes_away_is_no_error(folder, state, arguments):
    with Store(state / "shared") as store:
        store["blob"] = b"x" * 8_000_000
        store.update({f"key-{number}" + "x" * 1000: b"" for number in range(3000)})
    program = subprocess.Popen(
        [PROGRAM, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.read(1)
    program.stdout.close()
    error = program.stderr.read()
    program.stderr.close()
    assert program.wait() == 141
    assert error == b""


@contextlib.contextmanager
def watcher(folder, *arguments: object) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [PROGRAM, "watch", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        try:
            yield watch
        finally:
            watch.kill()  # also when the test has failed: else it is waited for


def test_watch_shows_changes_as_they_come(folder, state):
    with Store(state / "shared") as store, watcher(folder, "map/", "--after", 1) as watch:
        store["mode"] = b"stop"
        second = store.put("map/name", b"yard")
        assert watch.stdout.readline() == f"{second}  map/name  yard\n"
        third = store.delete("map/origin")
        assert watch.stdout.readline() == f"{third}  map/origin  (deleted)\n"
        watch.send_signal(signal.SIGINT)
        assert watch.wait() == 130
        assert "Traceback" not in watch.stderr.read()


def test_watch_as_json_ends_after_count(folder, state):
    with Store(state / "shared") as store:
        store["n"] = codec.encode([1, 2])
        del store["n"]
    with watcher(folder, "--after", 1, "--count", 2, "--format", "json") as watch:
        assert [json.loads(line) for line in watch.stdout] == [
            {"sequence": 2, "key": "n", "size": 3, "type": "msgpack", "value": [1, 2]},
            {"sequence": 3, "key": "n", "deleted": True},
        ]
        assert watch.wait() == 0


def test_watch_goes_on_when_the_store_is_replaced(folder, state):
    """Opened while nobody keeps its index, then by another store in its place."""
    shared = state / "shared"
    for path in shared.iterdir():
        if path.suffix != ".log" and path.name != "floor":
            path.unlink()
    with watcher(folder, "--after", 1) as watch:
        with Store(shared) as store:
            sequence = store.put("a", b"1")
            assert watch.stdout.readline() == f"{sequence}  a  1\n"
        shared.rename(state / "shared.old")
        with Store(shared) as store:
            store["a"] = b"2"
            assert watch.stdout.readline() == "1  a  2\n"
        watch.send_signal(signal.SIGTERM)


def test_watch_after_a_compaction_shows_what_is_there(folder, state):
    with Store(state / "shared") as store:
        for number in range(3):
            store["a"] = b"%d" % number * 50_000
        store.compact()
    with watcher(folder, "--after", 0, "--timeout", 0.1) as watch:
        lines = watch.stdout.read().splitlines()
    assert sorted(line.split("  ")[1] for line in lines) == ["a", "map/name", "map/origin", "mode"]


# Keys of every kind

KEYS = [
    b"",
    b"a\x00b",
    "🚗".encode(),
    b"../x",
    "é".encode(),
    "e\u0301".encode(),
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "\u202egnp.exe".encode(),
    b"back\\slash",
    b"tab\tline\n\x1b[31m",
    b"k" * 300,
    b" ",
    "\x85".encode(),
]


def test_keys_of_every_kind_are_shown_safely_and_found_again(call, folder, state):
    with Store(state / "shared") as store:
        store.clear()
        for number, key in enumerate(KEYS):
            store.put(RawKey(key), b"%d" % number)
    shown = call("list", "--keys").text
    assert all(character.isprintable() for line in shown.splitlines() for character in line)
    lines = shown.splitlines()
    assert len(set(lines)) == len(KEYS)
    found = {call("get", "-e", "--", line).out for line in lines}
    assert found == {b"%d" % number for number in range(len(KEYS))}
    call("list"), call("list", "--format", "json"), call("stats")
    for number, key in enumerate(KEYS):
        if b"\0" not in key:
            assert call("get", "--", key).out == b"%d" % number
    assert call("delete", "-e", "--", *lines).code == 0
    assert call("list", "--keys").text == ""


def test_completion_knows_commands_keys_and_nodes(command, state):
    def complete(words: str, at: int) -> list[str]:
        said = command(
            env={
                **os.environ,
                "_DORA_STATE_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(at),
            }
        )
        return [line.partition(",")[2] for line in said.lines]

    assert complete("dora-state ver", 1) == ["verify"]
    assert complete("dora-state get ma", 2) == ["map/name", "map/origin"]
    assert complete("dora-state get --node arm/left ", 4) == ["pose"]
    assert complete("dora-state list --node a", 3) == ["arm/left"]
    assert set(complete("dora-state list --format ", 3)) == {"table", "json"}
    with Store(state / "shared") as store:
        store.update(
            dict.fromkeys(["map/$(reboot)", "map/a b", "map/\\n", "map/é", "-e", "x;y"], b"")
        )
    assert complete("dora-state get ma", 2) == ["map/name", "map/origin", "map/é"]
    assert "x;y" not in complete("dora-state get x", 2)
    assert not any(key.startswith("-") for key in complete("dora-state get ", 2))
