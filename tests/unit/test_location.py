"""Where state lives, when it is adopted, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dora_state import Store
from dora_state.errors import CorruptionError, OperatorError
from dora_state.location import FORMAT, Claim, claim, escape, join_shared, prepare

RUNS = ("01a20ba4-0001", "01a20ba4-0002", "01a20ba4-0003")


@pytest.fixture
def impatient(monkeypatch):
    """Another run that is just ending is not waited for."""
    monkeypatch.setattr("dora_state.location._PATIENCE_S", 0)


@pytest.fixture
def flow(tmp_path) -> Path:
    """The folder of a dataflow."""
    folder = tmp_path / "flow"
    folder.mkdir()
    return folder


def run_once(
    flow: Path, run: str, *, clean: bool, key: str = "n", node: str = "counter", **options
) -> bool:
    """One run of one operator, which writes a key; returns whether it adopted state."""
    mine = claim(run, node, cwd=flow, **options)
    with Store(mine.path) as store:
        store.put(key, run.encode())
    mine.finish(clean)
    return mine.adopted


def keys(path: Path) -> list[str]:
    with Store(path) as store:
        return sorted(store)


# Between runs


def test_the_first_run_starts_empty(flow):
    mine = claim(RUNS[0], "counter", cwd=flow)
    assert mine.path == flow / "state" / "counter"
    assert mine.shared == flow / "state" / "shared"
    assert not mine.adopted
    mine.finish(clean=True)


def test_after_a_clean_stop_the_next_run_starts_empty(flow):
    run_once(flow, RUNS[0], clean=True)
    assert not run_once(flow, RUNS[1], clean=True, key="other")
    assert keys(flow / "state/counter") == ["other"]


def test_after_any_other_end_the_next_run_adopts_and_says_so(flow, caplog):
    run_once(flow, RUNS[0], clean=False)
    with caplog.at_level("INFO"):
        assert run_once(flow, RUNS[1], clean=False, key="other")
    assert keys(flow / "state/counter") == ["n", "other"]
    assert f"run {RUNS[0]} did not end with a clean stop" in caplog.text


def test_keep_adopts_after_a_clean_stop(flow):
    run_once(flow, RUNS[0], clean=True)
    assert run_once(flow, RUNS[1], clean=True, keep=True)
    assert keys(flow / "state/counter") == ["n"]


def test_fresh_starts_empty_after_a_crash(flow):
    run_once(flow, RUNS[0], clean=False)
    assert not run_once(flow, RUNS[1], clean=False, key="other", fresh=True)
    assert keys(flow / "state/counter") == ["other"]


@pytest.mark.parametrize("clean", [True, False])
def test_a_host_that_is_restarted_within_a_run_carries_on(flow, clean):
    run_once(flow, RUNS[0], clean=clean)
    assert run_once(flow, RUNS[0], clean=True, fresh=True)


def test_keep_and_fresh_exclude_each_other(flow):
    with pytest.raises(OperatorError, match="--keep and --fresh"):
        claim(RUNS[0], "counter", cwd=flow, keep=True, fresh=True)
    assert not (flow / "state").exists()


def test_state_of_which_the_record_is_lost_is_adopted(flow):
    run_once(flow, RUNS[0], clean=True)
    (flow / "state/counter.lock").write_text('{"ended": "cl')  # as after a power loss
    assert run_once(flow, RUNS[1], clean=True)


def test_what_was_set_aside_is_deleted_by_the_next_run_and_never_adopted(flow):
    run_once(flow, RUNS[0], clean=True)
    state = flow / "state"
    (state / "counter").rename(state / "counter.discarded-0")  # the host was killed at this point
    (state / "counterfeit.discarded-0").mkdir()
    assert not run_once(flow, RUNS[1], clean=True, key="other")
    assert keys(state / "counter") == ["other"]
    assert [path.name for path in state.glob("*.discarded-*")] == ["counterfeit.discarded-0"]


# Within a run

HOST = """
import sys
from pathlib import Path
from dora_state import Store
from dora_state.location import claim
mine = claim(sys.argv[1], sys.argv[2], cwd=Path(sys.argv[3]))
store = Store(mine.path)
store.put("n", b"1")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host(flow):
    """Starts a process that claims a node and holds it until it is killed."""
    started = []

    def start(run: str, node: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOST, run, node, str(flow)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_live_owner_is_refused(flow, host, impatient):
    process = host(RUNS[0], "counter")
    with pytest.raises(OperatorError, match=f"in use by process {process.pid}"):
        claim(RUNS[0], "counter", cwd=flow)


def test_a_killed_owner_gives_way_at_once(flow, host):
    process = host(RUNS[0], "counter")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_once(flow, RUNS[1], clean=True)


def test_two_nodes_of_one_run_live_side_by_side(flow, host):
    host(RUNS[0], "counter")
    host(RUNS[0], "tracker")
    assert keys(flow / "state/counter") == keys(flow / "state/tracker") == ["n"]


def test_i36_another_dataflow_does_not_get_at_the_shared_store(flow, host, impatient):
    host(RUNS[0], "counter")
    with pytest.raises(OperatorError, match=f"in use by dataflow {RUNS[0]}.*--state-dir"):
        claim(RUNS[1], "tracker", cwd=flow)
    assert not (flow / "state/tracker").exists()


def test_two_dataflows_that_name_one_directory_share_the_store(tmp_path, flow, impatient):
    place, other = tmp_path / "place", tmp_path / "other flow"
    other.mkdir()
    first = claim(RUNS[0], "counter", cwd=flow, state_dir=place)
    write_shared(first, "x")
    second = claim(RUNS[1], "tracker", cwd=other, state_dir=place)
    assert second.shared == first.shared
    node = join_shared(place, RUNS[1], cwd=other)
    first.finish(clean=True)
    assert keys(place / "shared") == ["x"], "the other run lives"
    again = join_shared(place, RUNS[0], cwd=flow)
    with pytest.raises(OperatorError, match="state of node 'tracker'"):
        claim(RUNS[0], "tracker", cwd=flow, state_dir=place)
    again.close()
    node.close()
    second.finish(clean=True)
    join_shared(place, RUNS[2], cwd=flow).close()
    assert keys(place / "shared") == [], "both have ended cleanly"


def test_a_crash_of_one_dataflow_keeps_the_store_of_both(tmp_path, flow, impatient):
    place, other = tmp_path / "place", tmp_path / "other flow"
    other.mkdir()
    first = claim(RUNS[0], "counter", cwd=flow, state_dir=place)
    second = claim(RUNS[1], "tracker", cwd=other, state_dir=place)
    write_shared(second, "x")
    second.finish(clean=False)
    first.finish(clean=True)
    join_shared(place, RUNS[2], cwd=flow).close()
    assert keys(place / "shared") == ["x"]


def test_the_default_place_of_a_dataflow_is_shared_with_nobody(tmp_path, flow, impatient):
    other = tmp_path / "other flow"
    other.mkdir()
    mine = claim(RUNS[0], "counter", cwd=flow)
    with pytest.raises(OperatorError, match=f"in use by dataflow {RUNS[0]}"):
        claim(RUNS[1], "tracker", cwd=other, state_dir=flow / "state")
    mine.finish(clean=True)
    named = claim(RUNS[1], "counter", cwd=other, state_dir=flow / "state")
    with pytest.raises(OperatorError, match=f"in use by dataflow {RUNS[1]}"):
        claim(RUNS[2], "tracker", cwd=flow)
    named.finish(clean=True)


def test_a_second_run_in_a_named_place_waits_for_one_that_is_just_ending(tmp_path, flow):
    place = tmp_path / "place"
    mine = claim(RUNS[0], "counter", cwd=flow, state_dir=place)
    write_shared(mine, "x")
    ending = threading.Timer(0.2, mine.finish, (True,))
    ending.start()
    join_shared(place, RUNS[1], cwd=flow).close()
    ending.join()
    assert keys(place / "shared") == []


def test_the_next_run_waits_for_one_that_is_just_ending(flow):
    mine = claim(RUNS[0], "counter", cwd=flow)
    with Store(mine.path) as store:
        store.put("n", b"1")
    ending = threading.Timer(0.2, mine.finish, (True,))
    ending.start()
    assert not run_once(flow, RUNS[1], clean=True)
    ending.join()


def test_one_run_has_one_state_directory(flow, tmp_path):
    mine = claim(RUNS[0], "counter", cwd=flow)
    with pytest.raises(OperatorError, match="same --state-dir"):
        claim(RUNS[0], "tracker", cwd=flow, state_dir=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    mine.finish(clean=True)


def test_a_run_is_noted_for_others(flow, runtime_directory):
    mine = claim(RUNS[0], "counter", cwd=flow, state_dir=Path("elsewhere"))
    noted = json.loads((runtime_directory / "dora-state" / RUNS[0]).read_text())
    assert noted["state_dir"] == str(flow / "elsewhere")
    assert (runtime_directory / "dora-state").stat().st_mode & 0o777 == 0o700
    mine.finish(clean=True)


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_directory_for_notes_that_others_prepared_is_not_used(
    flow, tmp_path, runtime_directory, caplog, kind
):
    planted = tmp_path / "planted"
    planted.mkdir()
    if kind == "a link":
        planted.chmod(0o700)
        (runtime_directory / "dora-state").symlink_to(planted)
    else:
        (runtime_directory / "dora-state").mkdir()
        (runtime_directory / "dora-state").chmod(0o777)
    run_once(flow, RUNS[0], clean=True)
    assert "cannot note where this run keeps its state" in caplog.text
    assert not list(planted.iterdir())
    assert not list((runtime_directory / "dora-state").iterdir())


# The shared store


def write_shared(mine: Claim, key: str) -> None:
    with Store(mine.shared) as store:
        store.put(key, b"1")


def shared_keys_of_next_run(flow: Path, run: str = RUNS[1]) -> list[str]:
    prepare(flow / "state")
    member = join_shared(flow / "state", run, cwd=flow)
    found = keys(flow / "state/shared")
    member.close()
    return found


def test_the_shared_store_is_emptied_after_a_clean_run(flow):
    mine, other = (claim(RUNS[0], node, cwd=flow) for node in ("counter", "tracker"))
    write_shared(mine, "x")
    mine.finish(clean=True)
    other.finish(clean=True)
    assert shared_keys_of_next_run(flow) == []


def test_the_shared_store_survives_one_unclean_operator(flow):
    mine, other = (claim(RUNS[0], node, cwd=flow) for node in ("counter", "tracker"))
    write_shared(mine, "x")
    mine.finish(clean=True)
    other.finish(clean=False)
    assert shared_keys_of_next_run(flow) == ["x"]


def test_the_shared_store_of_a_run_is_not_emptied_while_the_run_lives(flow):
    mine = claim(RUNS[0], "counter", cwd=flow)
    write_shared(mine, "x")
    mine.finish(clean=True)
    assert shared_keys_of_next_run(flow, RUNS[0]) == ["x"]
    claim(RUNS[0], "counter", cwd=flow).finish(clean=True)
    assert keys(flow / "state/shared") == ["x"]


@pytest.mark.parametrize("keep", ["keep", "keep_shared"])
def test_keep_adopts_the_shared_store_too(flow, keep, caplog):
    """Like the private one: what counts is what the next run is told, and not what the last was."""
    mine = claim(RUNS[0], "counter", cwd=flow)
    write_shared(mine, "x")
    mine.finish(clean=True)
    with caplog.at_level("INFO"):
        claim(RUNS[1], "counter", cwd=flow, **{keep: True}).finish(clean=True)
    assert "keeping the shared store" in caplog.text
    assert shared_keys_of_next_run(flow, RUNS[1]) == ["x"]
    assert shared_keys_of_next_run(flow, RUNS[2]) == []


def test_a_custom_node_that_comes_first_keeps_it_as_well(flow):
    mine = claim(RUNS[0], "counter", cwd=flow)
    write_shared(mine, "x")
    mine.finish(clean=True)
    join_shared(flow / "state", RUNS[1], keep=True, cwd=flow).close()
    assert shared_keys_of_next_run(flow, RUNS[1]) == ["x"]


def test_fresh_leaves_the_shared_store_alone(flow):
    mine = claim(RUNS[0], "counter", cwd=flow)
    write_shared(mine, "x")
    mine.finish(clean=False)
    claim(RUNS[1], "counter", cwd=flow, fresh=True).finish(clean=False)
    assert shared_keys_of_next_run(flow) == ["x"]


def test_a_shared_store_without_operators_is_kept(flow):
    prepare(flow / "state")
    member = join_shared(flow / "state", RUNS[0], cwd=flow)
    with Store(flow / "state/shared") as store:
        store.put("x", b"1")
    member.close()
    assert shared_keys_of_next_run(flow) == ["x"]


@pytest.mark.parametrize("node", ["counter", "tracker"])
@pytest.mark.parametrize("record", [b"", b'{"dataflow_id'])
def test_a_lost_record_does_not_lock_out_the_run_that_lives(flow, record, node):
    run_once(flow, RUNS[2], clean=False, node="tracker")
    first = claim(RUNS[0], "counter", cwd=flow)
    write_shared(first, "x")
    member = join_shared(flow / "state", RUNS[0], cwd=flow)  # a custom node
    if node == "counter":
        first.finish(clean=False)  # and dora restarts it
    (flow / "state/shared.lock").write_bytes(record)
    second = claim(RUNS[0], node, cwd=flow)
    second.finish(clean=True)
    first.finish(clean=False)
    member.close()
    assert shared_keys_of_next_run(flow) == ["x"], "who crashed before is not known any more"


def test_a_lost_record_lets_no_other_run_in(flow, impatient):
    mine = claim(RUNS[0], "counter", cwd=flow)
    (flow / "state/shared.lock").write_bytes(b"")
    with pytest.raises(OperatorError, match=r"in use by dataflow \(unknown\)"):
        claim(RUNS[1], "tracker", cwd=flow)
    mine.finish(clean=False)


def test_who_has_the_shared_store_open_from_outside_sees_the_next_run(flow):
    mine = claim(RUNS[0], "counter", cwd=flow)
    write_shared(mine, "x")
    mine.finish(clean=True)
    with Store(flow / "state/shared") as outside:
        mine = claim(RUNS[1], "counter", cwd=flow)
        write_shared(mine, "y")
        mine.finish(clean=True)
        assert sorted(outside) == ["y"]


# Names

NFC = unicodedata.normalize("NFC", "é")
NFD = unicodedata.normalize("NFD", "é")
STRANGE = [
    *("", "/", "..", ".", "../x", "a/b", "a\0b", "%", "%2F", "shared", "%shared", ".dora-state"),
    *(
        "a.lock",
        "counter.discarded-0",
        "x" * 300,
        "x" * 300 + "y",
        "é" * 300,
        NFC,
        NFD,
        "a b",
        "a\n",
        "🤖",
        "\udc80",
    ),
]


@pytest.mark.parametrize("node", STRANGE)
def test_i30_a_strange_node_id_stays_in_the_state_directory(flow, node):
    before = {path.name for path in flow.parent.iterdir()}
    run_once(flow, RUNS[0], clean=False, node=node)
    assert run_once(flow, RUNS[1], clean=True, node=node)
    assert {path.name for path in flow.parent.iterdir()} == before
    assert os.listdir(flow) == ["state"]


def test_i30_strange_node_ids_have_names_of_their_own():
    names = [escape(node) for node in STRANGE]
    assert len(set(names)) == len(names)
    assert "shared" not in names


@given(st.text(), st.text())
@example("shared", "%shared")
@example("a", "A")
def test_i30_names_differ_when_ids_do(one, other):
    assert (escape(one) == escape(other)) == (one == other)
    name = escape(one)
    assert name
    assert len(name) <= 200
    assert all(char.isascii() and (char.isalnum() or char in "-_%") for char in name)


# Directories that are refused, unchanged


def listing(path: Path) -> list[tuple[str, bytes]]:
    """Every file with what is in it, and every directory. The notes of the runs are in here, too."""
    return sorted(
        (str(found.relative_to(path)), found.read_bytes() if found.is_file() else b"")
        for found in path.rglob("*")
    )


def refused(
    flow: Path, match: str, error: type[Exception] = OperatorError, run: str = RUNS[0], **options
) -> None:
    before = listing(flow.parent)
    with pytest.raises(error, match=match):
        claim(run, "counter", cwd=flow, **options)
    assert listing(flow.parent) == before


def test_a_directory_of_something_else_is_refused(flow):
    (flow / "state").mkdir()
    (flow / "state/thesis.tex").touch()
    refused(
        flow, r"not a state directory.*it holds 'thesis.tex'; choose another place with --state-dir"
    )


@pytest.mark.parametrize("tag", ['{"format": 99}', "[]", "what?"])
def test_a_directory_of_unknown_format_is_refused(flow, tag):
    (flow / "state").mkdir()
    (flow / "state/.dora-state").write_text(tag)
    refused(flow, rf"format .*this version knows {FORMAT}; use the dora-state that wrote it")


def test_a_file_in_place_of_the_directory_is_refused(flow):
    (flow / "state").write_text("")
    refused(flow, "cannot use .*state for state: File exists")


def test_a_place_that_cannot_be_made_is_refused(flow):
    (flow / "file").write_text("")
    refused(flow, "cannot use .* for state: Not a directory", state_dir=Path("file/state"))


def test_what_was_made_on_the_way_to_such_a_place_is_removed(flow):
    (flow / "file").write_text("")
    refused(flow, "File exists", state_dir=Path("a/b/c/../../../file"))


@pytest.mark.parametrize("store", ["counter", "shared"])
@pytest.mark.parametrize("options", [{}, {"fresh": True}, {"keep": True}])
class TestAStoreThatCannotBeUsed:
    @pytest.fixture(autouse=True)
    def state_directory(self, flow, store):
        prepare(flow / "state")
        if store == "counter":  # a clean stop is on record, so the next run would empty it
            run_once(flow, RUNS[0], clean=True)
            for path in (flow / "state/counter").iterdir():
                path.unlink()
        else:
            (flow / "state/shared").mkdir()
        self.path = flow / "state" / store

    def refused(self, flow, options, match, error=OperatorError):
        refused(flow, match, error, run=RUNS[1], **options)

    def test_foreign_files(self, flow, options):
        (self.path / "thesis.tex").write_text("years of work")
        self.refused(flow, options, f"holds other files .thesis.tex.*move {self.path} away")

    def test_a_foreign_folder(self, flow, options):
        (self.path / "thesis").mkdir()
        self.refused(flow, options, f"holds other files .thesis.*move {self.path} away")

    def test_a_file(self, flow, options):
        self.path.rmdir()
        self.path.write_text("")
        self.refused(flow, options, "Not a directory")

    def test_an_unknown_format(self, flow, options):
        Store(self.path).close()
        (log,) = self.path.glob("*.log")
        log.write_bytes(of_version_2(log.read_bytes()))
        (self.path / "control").unlink()
        self.refused(flow, options, f"format version 2.*move {self.path} away")

    def test_a_damaged_header(self, flow, options):
        with Store(self.path) as it:
            it["n"] = b"1"
        (log,) = self.path.glob("*.log")
        data = bytearray(log.read_bytes())
        data[40] ^= 1
        log.write_bytes(data)
        self.refused(flow, options, r"\.log: ", CorruptionError)


def of_version_2(log: bytes) -> bytes:
    header = log[:8] + struct.pack("<I", 2) + log[12:124]
    crc = 0xFFFFFFFF
    for byte in header:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return header + struct.pack("<I", crc) + log[128:]


@pytest.mark.parametrize("options", [{}, {"fresh": True}])
def test_what_a_user_put_into_a_store_is_not_deleted_with_it(flow, options):
    run_once(flow, RUNS[0], clean=True)
    (flow / "state/counter/thesis.tex").write_text("years of work")
    with pytest.raises(OperatorError, match=r"is to be emptied and holds 'thesis.tex'.*; move"):
        claim(RUNS[1], "counter", cwd=flow, **options)
    assert "n" in keys(flow / "state/counter")
    assert (flow / "state/counter/thesis.tex").read_text() == "years of work"
    assert run_once(flow, RUNS[1], clean=False, keep=True)


@pytest.mark.parametrize("left", ["nothing", "a draft", "a log without a header"])
def test_a_store_whose_maker_died_is_no_obstacle(flow, left):
    prepare(flow / "state")
    for name in ("counter", "shared"):
        (flow / "state" / name).mkdir()
        if left == "a draft":
            (flow / "state" / name / "segment.new").write_bytes(bytes(100))
        if left == "a log without a header":
            (flow / "state" / name / f"{0:016x}.log").write_bytes(bytes(1 << 16))
            (flow / "state" / name / "control").write_bytes(bytes(4096))
    run_once(flow, RUNS[0], clean=False)
    assert keys(flow / "state/counter") == ["n"]
    assert keys(flow / "state/shared") == []


NOBODY = 65534
AS_NOBODY = f"""
import os, sys
from pathlib import Path
from dora_state import errors, location
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
del os.environ["XDG_RUNTIME_DIR"]
try:
    location.claim("a run", "counter", cwd=Path(sys.argv[1]))
except errors.OperatorError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("owner", "mode", "message"),
    [(NOBODY, 0o500, "is not writable"), (0, 0o777, "belongs to another user")],
)
@pytest.mark.parametrize(
    ("place", "what"),
    [("state", "state directory"), ("state/counter", "store"), ("state/shared", "store")],
)
def test_a_directory_that_is_not_writable_or_not_ours_is_refused(owner, mode, message, place, what):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        os.chmod(folder, 0o755)
        flow = Path(folder)
        run_once(flow, RUNS[0], clean=True)
        Store(flow / "state/shared").close()
        for path in [flow / "state", *(flow / "state").rglob("*")]:
            os.chown(path, NOBODY, -1)
        os.chown(flow / place, owner, -1)
        (flow / place).chmod(mode)
        before = listing(flow)
        command = [sys.executable, "-c", AS_NOBODY, folder]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.startswith(
            f"the {what} {flow}/{place} {message}; choose another place"
        )
        assert listing(flow) == before
